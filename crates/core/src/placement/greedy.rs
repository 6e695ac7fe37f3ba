//! Largest first, best fit. What runs stays where it is, unless the rest can't be placed around it.

use std::collections::BTreeMap;

use crate::inventory::InstanceId;
use crate::units::Bytes;

/// One instance to be placed.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) id: InstanceId,
    pub(super) bytes: Bytes,
    /// The bins that it may go to.
    pub(super) allowed: Vec<usize>,
    /// The bin that it runs in now.
    pub(super) current: Option<usize>,
}

/// Where each item went; an item that is not here fits nowhere.
pub(super) type Assignment = BTreeMap<InstanceId, usize>;

/// Places `items` into bins with `free` bytes each. The answer depends neither on the order of the
/// items nor on anything outside the arguments.
pub(super) fn place(items: &[Item], free: &[Bytes]) -> Assignment {
    let stable = place_with(items, free, true);
    if stable.len() == items.len() {
        return stable;
    }
    let fresh = place_with(items, free, false);
    if fresh.len() > stable.len() { fresh } else { stable }
}

fn place_with(items: &[Item], free: &[Bytes], keep_current: bool) -> Assignment {
    let mut free = free.to_vec();
    let mut assignment = Assignment::new();
    let mut order: Vec<&Item> = items.iter().collect();
    order.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.id.cmp(&b.id)));
    let (first, second): (Vec<&Item>, Vec<&Item>) =
        order.into_iter().partition(|item| keep_current && item.current.is_some());
    for item in first {
        let kept = item.current.filter(|bin| item.allowed.contains(bin));
        if let Some(bin) = kept.filter(|bin| item.bytes <= free[*bin]) {
            put(item, bin, &mut free, &mut assignment);
        } else if let Some(bin) = best_fit(item, &free) {
            put(item, bin, &mut free, &mut assignment);
        }
    }
    for item in second {
        if let Some(bin) = best_fit(item, &free) {
            put(item, bin, &mut free, &mut assignment);
        }
    }
    assignment
}

/// The allowed bin that would have the least left; the first of equals.
fn best_fit(item: &Item, free: &[Bytes]) -> Option<usize> {
    let fitting = item.allowed.iter().copied().filter(|bin| item.bytes <= free[*bin]);
    fitting.min_by_key(|bin| (free[*bin], *bin))
}

fn put(item: &Item, bin: usize, free: &mut [Bytes], assignment: &mut Assignment) {
    free[bin] = free[bin] - item.bytes;
    assignment.insert(item.id.clone(), bin);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, bytes: u64, allowed: &[usize], current: Option<usize>) -> Item {
        Item { id: InstanceId(id.into()), bytes: Bytes(bytes), allowed: allowed.to_vec(), current }
    }

    fn check(items: &[Item], free: &[u64], expected: &[(&str, usize)]) {
        let free: Vec<_> = free.iter().copied().map(Bytes).collect();
        let expected: Assignment =
            expected.iter().map(|(id, bin)| (InstanceId((*id).into()), *bin)).collect();
        assert_eq!(place(items, &free), expected);
        let mut reversed = items.to_vec();
        reversed.reverse();
        assert_eq!(place(&reversed, &free), expected, "the order of the input matters");
    }

    #[test]
    fn places_largest_first_where_least_is_left() {
        let all = [0, 1];
        check(&[], &[10], &[]);
        check(&[item("a", 5, &[0], None)], &[4], &[]);
        check(&[item("a", 4, &all, None)], &[9, 5], &[("a", 1)]);
        check(
            &[item("a", 4, &all, None), item("b", 6, &all, None), item("c", 3, &all, None)],
            &[7, 7],
            &[("b", 0), ("a", 1), ("c", 1)],
        );
    }

    #[test]
    fn what_runs_stays_unless_it_is_in_the_way() {
        let all = [0, 1];
        check(&[item("a", 4, &all, Some(0))], &[9, 5], &[("a", 0)]);
        check(&[item("a", 4, &[1], Some(0))], &[9, 5], &[("a", 1)]);
        check(
            &[item("a", 4, &all, Some(0)), item("b", 9, &all, None)],
            &[9, 5],
            &[("a", 1), ("b", 0)],
        );
    }
}
