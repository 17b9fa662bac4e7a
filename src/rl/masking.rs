//! Responses without a reward: left out of the comparison, with an advantage of 0.

use super::advantage::{Advantage, Group, advantages};
use anyhow::Result;

/// The rewards that are known, group by group.
pub struct Known {
    rewards: Vec<Vec<f64>>,
    lengths: Vec<Vec<usize>>,
}

impl Known {
    /// Of every group with a reward. `rewards` and `lengths` (tokens) are `[groups][responses]`.
    pub fn of(rewards: &[Vec<Option<f64>>], lengths: &[Vec<usize>]) -> Known {
        Known::of_groups(rewards, lengths, |rewards| rewards.iter().any(Option::is_some))
    }

    /// Of the groups that can be compared: not those of which fewer than two of several are left.
    pub fn comparable(rewards: &[Vec<Option<f64>>], lengths: &[Vec<usize>]) -> Known {
        Known::of_groups(rewards, lengths, comparable)
    }

    fn of_groups(rewards: &[Vec<Option<f64>>], lengths: &[Vec<usize>], has: fn(&[Option<f64>]) -> bool) -> Known {
        let mut known = Known { rewards: Vec::new(), lengths: Vec::new() };
        for (rewards, lengths) in rewards.iter().zip(lengths).filter(|(rewards, _)| has(rewards)) {
            let pairs: Vec<(f64, usize)> = rewards.iter().zip(lengths).filter_map(|(r, l)| Some(((*r)?, *l))).collect();
            known.rewards.push(pairs.iter().map(|(r, _)| *r).collect());
            known.lengths.push(pairs.iter().map(|(_, l)| *l).collect());
        }
        known
    }

    pub fn groups(&self) -> Vec<Group<'_>> {
        self.rewards.iter().zip(&self.lengths).map(|(rewards, lengths)| Group { rewards, lengths }).collect()
    }
}

/// The only one left of several has nothing to be compared with; a group of one response never had.
fn comparable(rewards: &[Option<f64>]) -> bool {
    let known = rewards.iter().flatten().count();
    known > 1 || known == 1 && rewards.len() == 1
}

/// Advantages of every response's tokens, `[responses of all groups][tokens]`; zeros where there is no reward. The others
/// are compared as if it had not been sampled.
pub fn masked_advantages(
    kind: Advantage,
    rewards: &[Vec<Option<f64>>],
    lengths: &[Vec<usize>],
    gamma: f64,
) -> Result<Vec<Vec<f32>>> {
    let known = Known::comparable(rewards, lengths);
    let groups = known.groups();
    // The whole batch may be without.
    let values = if groups.is_empty() { None } else { Some(advantages(kind, &groups, gamma)?) };
    let mut values = values.iter().flat_map(|v| v.responses());
    let mut all = Vec::new();
    for (rewards, lengths) in rewards.iter().zip(lengths) {
        let comparable = comparable(rewards);
        for (reward, length) in rewards.iter().zip(lengths) {
            let value = if comparable && reward.is_some() { values.next() } else { None };
            all.push(value.map_or_else(|| vec![0.0; *length], <[f32]>::to_vec));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::advantage::GroupStats;

    const KINDS: [Advantage; 5] = [
        Advantage::Grpo,
        Advantage::DrGrpo,
        Advantage::Rloo,
        Advantage::ReinforcePlusPlus,
        Advantage::ReinforcePlusPlusBaseline,
    ];

    #[test]
    fn a_response_without_a_reward_changes_nothing_for_the_others() {
        let (rewards, lengths) = (vec![vec![Some(1.0), None, Some(0.0), Some(0.0)]], vec![vec![2, 5, 3, 1]]);
        let without = (vec![vec![Some(1.0), Some(0.0), Some(0.0)]], vec![vec![2, 3, 1]]);
        for kind in KINDS {
            let masked = masked_advantages(kind, &rewards, &lengths, 1.0).unwrap();
            let plain = masked_advantages(kind, &without.0, &without.1, 1.0).unwrap();
            assert_eq!(masked[1], [0.0; 5]);
            assert_eq!([&masked[0], &masked[2], &masked[3]], [&plain[0], &plain[1], &plain[2]], "{kind:?}");
            assert!(masked[0][0] > 0.0);
        }
    }

    #[test]
    fn a_lone_survivor_is_compared_with_nobody() {
        for kind in KINDS {
            // Without the rule for it, a group of one would keep its raw reward.
            let masked = masked_advantages(kind, &[vec![Some(1.0), None]], &[vec![2, 1]], 1.0).unwrap();
            assert_eq!(masked, [vec![0.0; 2], vec![0.0; 1]], "{kind:?}");
            let none = masked_advantages(kind, &[vec![None, None]], &[vec![2, 1]], 1.0).unwrap();
            assert_eq!(none, [vec![0.0; 2], vec![0.0; 1]]);
        }
        let one = masked_advantages(Advantage::Grpo, &[vec![Some(0.5)]], &[vec![2]], 1.0).unwrap();
        assert_eq!(one, [vec![0.5; 2]]);
    }

    #[test]
    fn a_lone_survivor_counts_among_the_rewards() {
        let (rewards, lengths) = ([vec![Some(1.0), None], vec![None, None]], [vec![2, 1], vec![3, 3]]);
        let known = Known::of(&rewards, &lengths);
        let stats = GroupStats::of(&known.groups()).unwrap();
        assert_eq!((stats.groups, stats.responses, stats.reward_mean, stats.zero_std_groups), (1, 1, 1.0, 0));
        assert!(Known::comparable(&rewards, &lengths).groups().is_empty());
    }
}
