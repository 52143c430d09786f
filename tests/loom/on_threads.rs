//! The module as it is, on threads over memory that they reach by pointers, as kernels do.

#[path = "../../crates/moec-kernels/src/machine/team/primitives.rs"]
mod primitives;
#[path = "../../crates/moec-kernels/src/machine/team/rounds.rs"]
mod rounds;

use super::woken;
use rounds::{Round, Rounds};

/// The first of as many numbers as there are units.
#[derive(Clone, Copy)]
struct Numbers(*mut usize);

// SAFETY: units write their own number, and read others in the launch after.
unsafe impl Send for Numbers {}
// SAFETY: as above.
unsafe impl Sync for Numbers {}

fn take_part(rounds: &Rounds<usize>, mut round: Round<usize>, unit: usize, numbers: &Numbers) {
    for launch in 0..round.work {
        let (own, next) = (numbers.0.wrapping_add(unit), numbers.0.wrapping_add((unit + 1) % rounds.units()));
        // SAFETY: there is a number for each unit, nobody else has this one in an even launch, and nobody writes any in
        // an odd one.
        unsafe {
            if launch % 2 == 0 {
                *own += 1;
            } else {
                assert_eq!(*own, *next);
            }
        }
        rounds.meet(&mut round);
    }
}

#[test]
fn units_meet() {
    const UNITS: usize = 3;
    let scripts = if cfg!(miri) { 3 } else { 10 };
    let mut memory = vec![0; UNITS];
    let (rounds, numbers) = (Rounds::new(UNITS), Numbers(memory.as_mut_ptr()));
    std::thread::scope(|scope| {
        for unit in 1..UNITS {
            let (rounds, numbers) = (&rounds, &numbers);
            scope.spawn(move || {
                let mut seen = 0;
                while let Some(round) = rounds.next(&mut seen) {
                    take_part(rounds, round, unit, numbers);
                }
            });
        }
        for script in 0..scripts {
            take_part(&rounds, rounds.begin(script % 5), 0, &numbers);
        }
        rounds.stop();
    });
    assert_eq!(memory, [(0..scripts).map(|script| (script % 5).div_ceil(2)).sum(); UNITS]);
}
