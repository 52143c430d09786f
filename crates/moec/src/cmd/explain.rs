//! `moec explain`: what a message code means.

use crate::args::ExplainArgs;
use crate::console::Console;
use crate::exit::{Exit, Failure};
use moec_syntax::{Code, did_you_mean};

/// Runs the command.
///
/// # Errors
/// When there is no such code.
pub fn run(args: &ExplainArgs, console: &Console) -> Result<Exit, Failure> {
    let Some(number) = &args.code else {
        if args.json {
            let rows: Vec<_> = Code::ALL.iter().map(|c| entry(*c)).collect();
            console.json(&serde_json::Value::Array(rows))?;
        } else {
            for code in Code::ALL {
                console.out(format!("{}  {}", code.number(), code.summary()))?;
            }
        }
        return Ok(Exit::Success);
    };
    let upper = number.to_uppercase();
    let Ok(code) = upper.parse::<Code>() else {
        let failure = Failure::new(Exit::Usage, format!("there is no message code {number}"));
        return Err(match did_you_mean(&upper, Code::ALL.iter().map(|c| c.number())) {
            Some(near) => failure.help(format!("did you mean {near}?")),
            None => failure.help("`moec explain` lists all codes"),
        });
    };
    if args.json {
        console.json(&entry(code))?;
    } else {
        console.out(code.explain())?;
    }
    Ok(Exit::Success)
}

fn entry(code: Code) -> serde_json::Value {
    serde_json::json!({
        "schema": "moec.explain/1",
        "code": code.number(),
        "severity": code.severity().to_string(),
        "summary": code.summary(),
        "explanation": code.explanation(),
    })
}
