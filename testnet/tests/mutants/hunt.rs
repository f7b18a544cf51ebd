//! The first seed of a range whose round fails, for a program that is built of broken sources.

use fedprune_testnet::simulator::{Scenario, Shape, World, scratch, simulate_and_audit};

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let (members, end) = (numbers.next().expect("members") as usize, numbers.next().expect("the last seed"));
    for seed in 0..end {
        let shape = Shape::of_seed(seed, members);
        let scenario = Scenario::stormy(seed, shape);
        if let Err(violation) = simulate_and_audit(&World::new(shape), &scenario, Some(&scratch())) {
            println!("seed {seed}: {}", violation.what);
            return;
        }
    }
    println!("none of {end}");
}
