//! Who comes first: what `dependsOn` says of the order of services. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// The services that each one depends on.
pub(super) type Dependencies<'a> = BTreeMap<&'a str, &'a [String]>;

/// A cycle, from one service round to itself; none if there is an order.
pub(super) fn cycle(dependencies: &Dependencies<'_>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    dependencies.keys().find_map(|start| walk(dependencies, start, &mut Vec::new(), &mut done))
}

fn walk<'a>(
    dependencies: &Dependencies<'a>,
    at: &'a str,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<Vec<String>> {
    if let Some(begin) = path.iter().position(|passed| *passed == at) {
        return Some(path.iter().skip(begin).chain([&at]).map(|name| (*name).to_owned()).collect());
    }
    if done.contains(at) {
        return None;
    }
    path.push(at);
    let next = dependencies.get(at).copied().unwrap_or_default();
    let found = next.iter().find_map(|next| walk(dependencies, next, path, done));
    path.pop();
    done.insert(at);
    found
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
        assert_eq!(cycle(&dependencies), expected, "{edges:?}");
        assert_eq!(all_of(&dependencies, "a"), of_a, "{edges:?}");
    }

    #[test]
    fn cycles_are_found_and_everything_below_is_known() {
        check(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])], None, &["b", "c", "d"]);
        check(&[("a", &["b"]), ("b", &["a"])], Some(&["a", "b", "a"]), &["b"]);
        check(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])], Some(&["b", "c", "b"]), &["b", "c"]);
        check(&[("a", &["unknown"])], None, &["unknown"]);
        check(&[("a", &[])], None, &[]);
    }
}
