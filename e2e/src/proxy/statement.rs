//! Which statements of the operator act, and what each is called in every run.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::Value;

use super::recorder::{Repeats, Step};

/// Functions of the agent that only read.
const READS: [&str; 8] = [
    "observe",
    "qualified",
    "digest_columns",
    "with_rows",
    "estimate",
    "schema_shape",
    "schema_fingerprint",
    "this_server",
];
/// Functions of the server that act.
const ACTS: [&str; 2] = ["pg_create_logical_replication_slot", "pg_drop_replication_slot"];
/// A detail that is longer is cut, and its hash appended.
const DETAIL_MAX: usize = 60;

/// What the statement does; none if it only reads or sets something up in its session.
pub(super) fn step(sql: &str, parameters: &[String]) -> Option<Step> {
    let sql = without_comments(sql);
    if let Some(function) = acting_function(&sql) {
        return Some(of_function(&function, parameters));
    }
    if first_word(&sql) == "select" {
        return None;
    }
    let harmless =
        ["set", "reset", "select", "show", "begin", "commit", "rollback", "savepoint", "release", "with"];
    let mut parts = sql.split(';').map(str::trim).filter(|part| !part.is_empty());
    if parts.all(|part| harmless.contains(&first_word(part))) {
        return None;
    }
    let kind = match (sql.contains("schema if not exists longshore"), first_word(&sql)) {
        (true, _) => "install".to_owned(),
        (false, word) => word.to_owned(),
    };
    let detail =
        if kind == "install" { String::new() } else { brief(&without_tags(sql[kind.len()..].trim())) };
    Some(Step { kind, detail, repeats: Repeats::Never })
}

/// By its parameters, but not the term: it tells one operator from the next, not one step from another.
fn of_function(function: &str, parameters: &[String]) -> Step {
    let (shown, repeats): (&[usize], _) = match function {
        "claim" | "attach" => (&[], Repeats::EachDoubling),
        "probe" | "hand_over" => (&[1, 2], Repeats::EachHandOver),
        "journal" => (&[1, 3], Repeats::Never),
        "publish" | "clear" => (&[1], Repeats::Never),
        // Its version is a new one whenever a try of it died halfway: which shards it names tells the steps apart.
        "set_shards" => {
            return Step {
                kind: function.to_owned(),
                detail: shard_names(parameters),
                repeats: Repeats::Never,
            };
        }
        "register" => (&[], Repeats::Never),
        // Not the connection string: it holds a password.
        "subscribe" => (&[1, 3], Repeats::Never),
        "resubscribe" => (&[1], Repeats::Never),
        "pg_create_logical_replication_slot" | "pg_drop_replication_slot" => (&[0], Repeats::Never),
        _ => (&[1, 2, 3, 4], Repeats::Never),
    };
    let shown: Vec<String> =
        shown.iter().filter_map(|index| parameters.get(*index)).map(|text| without_tags(text)).collect();
    let kind = function.strip_prefix("pg_").unwrap_or(function).to_owned();
    Step { kind, detail: brief(&shown.join(" ")), repeats }
}

fn shard_names(parameters: &[String]) -> String {
    let shards = parameters.get(2).and_then(|list| serde_json::from_str::<Value>(list).ok());
    let shards = shards.as_ref().and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = shards.filter_map(|shard| shard.get("name")?.as_str()).collect();
    names.join(" ")
}

/// The first function called that acts.
fn acting_function(sql: &str) -> Option<String> {
    if first_word(sql) != "select" {
        return None;
    }
    if let Some(function) = ACTS.iter().find(|function| sql.contains(&format!("{function}("))) {
        return Some((*function).to_owned());
    }
    sql.match_indices("longshore.").find_map(|(at, prefix)| {
        let rest = &sql[at + prefix.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
        let (function, rest) = rest.split_at(end);
        (rest.starts_with('(') && !READS.contains(&function)).then(|| function.to_owned())
    })
}

fn first_word(sql: &str) -> &str {
    sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default()
}

/// In lower case, on one line.
fn without_comments(sql: &str) -> String {
    let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    words.join(" ").to_lowercase()
}

/// Names of streams begin with `ls_`, six digits of the set and `_`: the digits differ from run to run.
fn without_tags(text: &str) -> String {
    let mut parts = text.split("ls_");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let tag =
            part.get(..7).filter(|tag| tag.ends_with('_') && tag[..6].chars().all(|c| c.is_ascii_hexdigit()));
        kept.push_str("ls_");
        kept.push_str(tag.map_or(part, |_| &part[7..]));
    }
    kept
}

fn brief(text: &str) -> String {
    if text.chars().count() <= DETAIL_MAX {
        return text.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let start: String = text.chars().take(DETAIL_MAX - 20).collect();
    format!("{start}… #{:08x}", hasher.finish() & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_told_from_what_reads() {
        let check = |sql: &str, parameters: &[&str], expected: Option<&str>| {
            let parameters: Vec<String> = parameters.iter().map(|text| (*text).to_owned()).collect();
            let found = step(sql, &parameters).map(|step| format!("{} {}", step.kind, step.detail));
            assert_eq!(found.as_deref(), expected, "{sql}");
        };
        check("select longshore.observe($1, $2::int4multirange)::text as view", &["1", "{}"], None);
        check("select md5(string_agg(x, ';')) from longshore.meta", &[], None);
        check("select longshore.qualified($1), quote_ident($2)", &["orders", "user_id"], None);
        check("select registered, md5(longshore.digest_columns(x)) from longshore.meta", &[], None);
        check("set local role longshore_owner; set local lock_timeout = '5s'", &[], None);
        check("set local x = y; select pg_advisory_xact_lock(19541, 0)", &[], None);
        check("BEGIN", &[], None);
        check("select longshore.hand_over($1, $2, $3, $4)", &["7", "1", "b", "..."], Some("hand_over 1 b"));
        let shards = r#"[{"name": "a", "port": 1}, {"name": "b"}]"#;
        check("select longshore.set_shards($1, $2, $3)", &["7", "3", shards], Some("set_shards a b"));
        check("select longshore.claim($1, $2)", &["7", "me"], Some("claim "));
        check(
            "select longshore.expect($1, $2)",
            &["7", "1", "{[0,3]}", "5", "a"],
            Some("expect 1 {[0,3]} 5 a"),
        );
        check(
            "select pg_create_logical_replication_slot($1, 'pgoutput')",
            &["ls_0a1b2c_1_a_b"],
            Some("create_logical_replication_slot ls_1_a_b"),
        );
        check(
            "drop subscription if exists \"ls_0a1b2c_1_a_b\"",
            &[],
            Some("drop subscription if exists \"ls_1_a_b\""),
        );
        check("-- part 1\ncreate schema if not exists longshore;", &[], Some("install "));
        check(
            "insert into longshore.migration values ($1)",
            &[],
            Some("insert into longshore.migration values ($1)"),
        );
    }

    #[test]
    fn a_long_detail_is_cut_but_stays_itself() {
        let (one, other) = (brief(&"a".repeat(100)), brief(&format!("{}b", "a".repeat(99))));
        assert!(one.chars().count() < 60 && one != other);
        assert_eq!(one, brief(&"a".repeat(100)));
    }
}
