//! Who comes first: what `dependsOn` says of the order of services. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// The services that each one depends on.
pub(super) type Dependencies<'a> = BTreeMap<&'a str, &'a [String]>;

/// A shortest way from a service round to itself; none if it is in no cycle.
pub(super) fn cycle(dependencies: &Dependencies<'_>, service: &str) -> Option<Vec<String>> {
    let mut ways: Vec<Vec<&str>> = vec![vec![service]];
    let mut seen = BTreeSet::new();
    let mut at = 0;
    while let Some(way) = ways.get(at).cloned() {
        at += 1;
        let last = way.last().copied().unwrap_or(service);
        for next in dependencies.get(last).copied().unwrap_or_default() {
            let longer = || way.iter().copied().chain([next.as_str()]);
            if next == service {
                return Some(longer().map(str::to_owned).collect());
            }
            if seen.insert(next.as_str()) {
                ways.push(longer().collect());
            }
        }
    }
    None
}

/// All that a service depends on, over others too: the nearest first.
pub(super) fn all_of<'a>(dependencies: &Dependencies<'a>, service: &'a str) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    let mut at = service;
    let mut next = 0;
    loop {
        for name in dependencies.get(at).copied().unwrap_or_default() {
            if !found.contains(&name.as_str()) && name != service {
                found.push(name);
            }
        }
        let Some(following) = found.get(next) else { return found };
        at = following;
        next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(edges: &[(&str, &[&str])], cycle_: Option<&[&str]>, of_a: &[&str]) {
        let owned: Vec<(&str, Vec<String>)> =
            edges.iter().map(|(name, on)| (*name, on.iter().map(|on| (*on).to_owned()).collect())).collect();
        let dependencies: Dependencies<'_> = owned.iter().map(|(name, on)| (*name, on.as_slice())).collect();
        let expected = cycle_.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(cycle(&dependencies, "a"), expected, "{edges:?}");
        assert_eq!(all_of(&dependencies, "a"), of_a, "{edges:?}");
    }

    #[test]
    fn cycles_are_found_and_everything_below_is_known() {
        check(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])], None, &["b", "c", "d"]);
        check(&[("a", &["b"]), ("b", &["a"])], Some(&["a", "b", "a"]), &["b"]);
        check(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])], None, &["b", "c"]);
        check(&[("a", &["b"]), ("b", &["c"]), ("c", &["b", "a"])], Some(&["a", "b", "c", "a"]), &["b", "c"]);
        check(&[("a", &["unknown"])], None, &["unknown"]);
        check(&[("a", &[])], None, &[]);
    }
}
