//! Groups of experts, of which a token chooses from a few: node-limited and device-limited routing.

use moec_ir::{Binary, Builder, Value};

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};

pub(super) const GROUPS: ParameterSpec = ParameterSpec::optional(
    "groups",
    ParameterType::Int(Interval::at_least(1.0)),
    DefaultValue::Int(1),
    "groups that the experts are divided into",
);

pub(super) const GROUPS_KEPT: ParameterSpec = ParameterSpec::optional(
    "groups_kept",
    ParameterType::Int(Interval::at_least(1.0)),
    DefaultValue::Int(1),
    "groups that a token chooses from",
);

pub(super) const GROUP_SCORE: ParameterSpec = ParameterSpec::optional(
    "group_score",
    ParameterType::Choice(&["best_two", "best"]),
    DefaultValue::Word("best_two"),
    "what groups are compared by: the sum of their two largest scores (DeepSeek-V3), or the largest (DeepSeek-V2)",
);

/// Whether groups and choices suit the number of experts.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the strategy's name.
pub(super) fn check(arguments: &Arguments, experts: usize) -> Result<(), String> {
    let [k, groups, kept] = ["k", "groups", "groups_kept"].map(|name| arguments.size(name));
    if kept > groups {
        Err(format!("keeps {kept} groups of {groups}"))
    } else if !experts.is_multiple_of(groups.max(1)) {
        Err(format!("cannot divide {experts} experts into {groups} equal groups"))
    } else if groups == kept && arguments.word("group_score") != "best_two" {
        Err("has no use for `group_score`: a token chooses from all groups".to_owned())
    } else if groups > 1 && k > kept * (experts / groups) {
        Err(format!("cannot choose {k} experts from {kept} groups of {}", experts / groups))
    } else {
        Ok(())
    }
}

/// The scores `[N, E]` with those outside the best groups lowered below every other: to 0 would not do, as scores can be
/// negative.
pub(super) fn within(b: &mut Builder, scores: Value, arguments: &Arguments) -> Value {
    let [groups, kept] = ["groups", "groups_kept"].map(|name| arguments.size(name));
    if kept >= groups {
        return scores;
    }
    let [tokens, experts] = [0, 1].map(|axis| b.extent(scores, axis));
    let size = experts / groups;
    let counted = if arguments.word("group_score") == "best" { 1 } else { 2 };
    let grouped = b.reshape(scores, [tokens * groups, size]);
    let (best, _) = b.top_k(grouped, size.min(counted));
    let group_score = b.sum(best, &[1]);
    let group_score = b.reshape(group_score, [tokens, groups]);
    let (_, chosen) = b.top_k(group_score, kept);
    let ones = b.fill(1.0, [tokens, kept]);
    let member = b.scatter_last(ones, chosen, groups);
    let member = b.broadcast_last(member, size);
    let member = b.reshape(member, [tokens, experts]);
    let lowest = b.fill(f64::from(f32::MIN), [tokens, experts]);
    let zero = b.fill(0.0, []);
    let inside = b.binary(Binary::Less, zero, member);
    b.select(inside, scores, lowest)
}
