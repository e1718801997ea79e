//! What must be alike on all shards of a set.

use std::collections::{BTreeMap, BTreeSet};

use longshore_crds::order_shard_set::TableSpec;
use longshore_sharding::ShardName;
use serde_json::json;
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{Finding, Reason};
use crate::shard::{StoreError, failed};

/// What one shard says of itself, to be compared with the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `longshore.schema_shape()`: a sorted line for each thing.
    pub shape: Vec<String>,
    pub encoding: String,
    pub sequences: Vec<Sequence>,
}

/// A column that is numbered by a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequence {
    /// `table.column`, for people.
    pub column: String,
    /// As it stands in statements.
    pub name: String,
    pub increment: i64,
    pub start: i64,
    /// Whether a unique index holds the column: an equal number then is an error, else only odd.
    pub is_unique: bool,
    /// The statement that ends the numbering by sequence.
    pub drop: String,
}

/// Reads a shard's facts, once its tables are registered.
///
/// # Errors
/// When the shard cannot be asked.
pub async fn facts(connection: &mut PgConnection) -> Result<Facts, StoreError> {
    let failed = failed("read the shape of the schema");
    let query = sqlx::query(
        "select array(select longshore.schema_shape()) as shape,
                (select pg_encoding_to_char(encoding)::text from pg_database where datname = current_database()) as encoding",
    );
    let row = query.fetch_one(&mut *connection).await.map_err(&failed)?;
    let rows = sqlx::query(SEQUENCES).fetch_all(connection).await.map_err(&failed)?;
    let read = || -> Result<Facts, sqlx::Error> {
        Ok(Facts {
            shape: row.try_get("shape")?,
            encoding: row.try_get("encoding")?,
            sequences: rows.iter().map(sequence).collect::<Result<_, _>>()?,
        })
    };
    read().map_err(failed)
}

fn sequence(row: &PgRow) -> Result<Sequence, sqlx::Error> {
    Ok(Sequence {
        column: row.try_get("shown")?,
        name: row.try_get("name")?,
        increment: row.try_get("increment")?,
        start: row.try_get("start")?,
        is_unique: row.try_get("is_unique")?,
        drop: row.try_get("drop")?,
    })
}

/// Columns with a sequence behind them, be it an identity or a default.
const SEQUENCES: &str = "
  select format('%s.%s', t.name, a.attname) as shown, s.seqrelid::regclass::text as name, s.seqincrement as increment, s.seqstart as start,
         exists (select from pg_index i where i.indrelid = a.attrelid and i.indisunique and a.attnum = any (i.indkey)) as is_unique,
         format('ALTER TABLE %s ALTER COLUMN %I DROP %s', longshore.qualified(t.name), a.attname,
                case when a.attidentity = '' then 'DEFAULT' else 'IDENTITY' end) as drop
  from longshore.sharded_table t
  join pg_attribute a on a.attrelid = to_regclass(longshore.qualified(t.name)) and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  join pg_depend p on p.refclassid = 'pg_class'::regclass and p.classid = 'pg_attrdef'::regclass and p.objid = d.oid
    or p.classid = 'pg_class'::regclass and p.deptype = 'i' and p.refclassid = 'pg_class'::regclass and p.refobjid = a.attrelid and p.refobjsubid = a.attnum
  join pg_sequence s on s.seqrelid = case when p.classid = 'pg_attrdef'::regclass then p.refobjid else p.objid end
  order by 1";

/// Pure: what is not alike. Each finding with the shard that it is about: where a thing is missing, the one that lacks it.
#[must_use]
pub fn compare(facts: &BTreeMap<ShardName, Facts>) -> Vec<(ShardName, Finding)> {
    let mut findings = Vec::new();
    let mut shards = facts.iter();
    let Some((first, expected)) = shards.next() else { return findings };
    for (name, found) in shards {
        findings.extend(schema_difference(first, expected, name, found));
        if found.encoding != expected.encoding {
            let message = format!(
                "the database's encoding is {}, and {} at shard {first}: make it anew with that one",
                found.encoding, expected.encoding
            );
            findings.push((name.clone(), Finding::new(Reason::EncodingDiffers, message, None)));
        }
    }
    findings.extend(shared_numbers(facts));
    findings
}

/// The first line that only one of the two has.
fn schema_difference(
    first: &ShardName,
    expected: &Facts,
    name: &ShardName,
    found: &Facts,
) -> Option<(ShardName, Finding)> {
    let (here, there): (BTreeSet<_>, BTreeSet<_>) =
        (found.shape.iter().collect(), expected.shape.iter().collect());
    let line = *here.symmetric_difference(&there).min_by_key(|line| (!is_column(line), **line))?;
    let same = |lines: &BTreeSet<&String>| {
        lines.iter().find(|other| is_column(line) && subject(other) == subject(line)).map(ToString::to_string)
    };
    if let (Some(here), Some(there)) = (same(&here), same(&there)) {
        let message = format!("{here} here, and {there} at shard {first}");
        return Some((name.clone(), Finding::new(Reason::SchemaDiffers, message, None)));
    }
    let (lacking, having) = if there.contains(line) { (name, first) } else { (first, name) };
    let message = format!("shard {having} has what is not here: {line}");
    Some((lacking.clone(), Finding::new(Reason::SchemaDiffers, message, statement(line))))
}

fn is_column(line: &str) -> bool {
    line.split_once(": ").is_some_and(|(_, thing)| thing.starts_with("column "))
}

/// `table: column name` of a column's line.
fn subject(line: &str) -> Vec<&str> {
    line.split(' ').take(3).collect()
}

/// The statement that makes what a line of a shape says.
fn statement(line: &str) -> Option<String> {
    let (table, thing) = line.split_once(": ")?;
    let alter = |what: &str| Some(format!("ALTER TABLE {table} {what}"));
    if let Some(column) = thing.strip_prefix("column ") {
        return alter(&format!("ADD COLUMN {column}")).filter(|_| !thing.contains(" GENERATED "));
    }
    if let Some(unique) = thing.strip_prefix("UNIQUE ") {
        return Some(format!("CREATE UNIQUE INDEX ON {table} {unique}"))
            .filter(|_| !thing.ends_with(" DEFERRABLE"));
    }
    if ["CHECK ", "FOREIGN KEY ", "EXCLUDE ", "PRIMARY KEY "].iter().any(|kind| thing.starts_with(kind)) {
        return alter(&format!("ADD {thing}"));
    }
    (thing.starts_with("CREATE ") && !thing.contains(" ENABLED ")).then(|| thing.to_owned())
}

/// Sequences that give a number which another shard gives too. They do not if all step over each other: the same increment,
/// as many as there are shards at least, and starts that never meet.
fn shared_numbers(facts: &BTreeMap<ShardName, Facts>) -> Vec<(ShardName, Finding)> {
    let mut findings = Vec::new();
    let mut seen: BTreeMap<&str, Vec<&Sequence>> = BTreeMap::new();
    for (name, shard) in facts {
        for sequence in &shard.sequences {
            let others = seen.entry(&sequence.column).or_default();
            let meets = |other: &&&Sequence| {
                let step = sequence.increment.abs().max(1);
                other.increment != sequence.increment || (other.start - sequence.start) % step == 0
            };
            if others.iter().find(meets).is_some() {
                findings.push((name.clone(), shared_number(sequence)));
            }
            others.push(sequence);
        }
    }
    findings
}

fn shared_number(sequence: &Sequence) -> Finding {
    let Sequence { column, name, .. } = sequence;
    let message = format!(
        "{column} is numbered by sequence {name}, and another shard gives the same numbers: let the service give it a UUID of version 7, \
         or let each shard's sequence START at a number of its own, INCREMENT BY 64, and RESTART above all that are in use"
    );
    let refuses = sequence.is_unique;
    Finding { refuses, ..Finding::new(Reason::SequenceOnTable, message, Some(sequence.drop.clone())) }
}

/// The extensions that the tables of the shard `having` use and the shard `lacking` does not have: why a migration failed there.
///
/// # Errors
/// When a shard cannot be asked.
pub async fn extensions_missing(
    having: &mut PgConnection,
    lacking: &mut PgConnection,
    tables: &[TableSpec],
) -> Result<Vec<Finding>, StoreError> {
    let failed = failed("read the extensions");
    let used = sqlx::query(EXTENSIONS_USED).bind(json!(tables)).fetch_one(having).await;
    let used: Vec<String> = used.and_then(|row| row.try_get(0)).map_err(&failed)?;
    let query = sqlx::query("select coalesce(array_agg(extname::text), '{}') from pg_extension")
        .fetch_one(lacking)
        .await;
    let there: Vec<String> = query.and_then(|row| row.try_get(0)).map_err(failed)?;
    let missing = used.into_iter().filter(|name| !there.contains(name));
    let finding = |name: String| {
        let message = format!("the tables of other shards use extension {name}, which is not here");
        let mend = format!("CREATE EXTENSION \"{name}\"");
        Finding::new(Reason::ExtensionMissing, message, Some(mend))
    };
    Ok(missing.map(finding).collect())
}

/// Of the types of columns, and of what defaults, constraints and indexes are made of.
const EXTENSIONS_USED: &str = "
  with moved as (select to_regclass(longshore.qualified(t ->> 'name')) as oid from jsonb_array_elements($1) t),
  used as (
    select d.refclassid, d.refobjid from moved join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = moved.oid
    union select d.refclassid, d.refobjid from moved join pg_index i on i.indrelid = moved.oid
      join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
    union select d.refclassid, d.refobjid from moved join pg_attrdef f on f.adrelid = moved.oid
      join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid
    union select d.refclassid, d.refobjid from moved join pg_constraint c on c.conrelid = moved.oid
      join pg_depend d on d.classid = 'pg_constraint'::regclass and d.objid = c.oid)
  select coalesce(array_agg(distinct e.extname::text), '{}') from used
  left join pg_type t on used.refclassid = 'pg_type'::regclass and t.oid = used.refobjid
  join pg_depend m on m.classid = used.refclassid and m.objid in (used.refobjid, nullif(t.typelem, 0)) and m.deptype = 'e'
  join pg_extension e on e.oid = m.refobjid";

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ShardName {
        text.try_into().expect("a valid name")
    }

    fn shaped(lines: &[&str]) -> Facts {
        let shape = lines.iter().map(|line| (*line).to_owned()).collect();
        Facts { shape, encoding: "UTF8".into(), sequences: Vec::new() }
    }

    fn compared(a: Facts, b: Facts) -> Vec<String> {
        let found = compare(&BTreeMap::from([(name("a"), a), (name("b"), b)]));
        let told = |(shard, finding): (ShardName, Finding)| {
            let what = if finding.refuses { "" } else { "only told: " };
            format!("{what}{shard}: {}: {finding}", finding.reason.word())
        };
        found.into_iter().map(told).collect()
    }

    #[test]
    fn the_first_difference_is_named_where_it_is_to_be_mended() {
        let (one, more) = (
            ["t: CHECK (x)", "t: column x bigint"],
            ["t: CHECK (x)", "t: column x bigint", "t: column y text"],
        );
        assert_eq!(compared(shaped(&one), shaped(&one)), [""; 0]);
        let lacking = "SchemaDiffers: shard b has what is not here: t: column y text; mend: ALTER TABLE t ADD COLUMN y text";
        assert_eq!(compared(shaped(&one), shaped(&more)), [format!("a: {lacking}")]);
        let lacking = lacking.replace("shard b", "shard a");
        assert_eq!(compared(shaped(&more), shaped(&one)), [format!("b: {lacking}")]);
        let found = compared(shaped(&one), shaped(&["t: column x uuid"]));
        assert_eq!(found, ["b: SchemaDiffers: t: column x uuid here, and t: column x bigint at shard a"]);
    }

    #[test]
    fn encodings_must_be_the_same() {
        let latin = Facts { encoding: "LATIN1".into(), ..shaped(&[]) };
        let found = compared(shaped(&[]), latin);
        assert!(found[0].starts_with("b: EncodingDiffers: the database's encoding is LATIN1"), "{found:?}");
    }

    #[test]
    fn sequences_must_not_meet() {
        let with = |increment, start, is_unique| {
            let sequence =
                Sequence { column: "t.n".into(), increment, start, is_unique, ..Sequence::default() };
            Facts { sequences: vec![sequence], ..shaped(&[]) }
        };
        assert_eq!(compared(with(64, 1, true), with(64, 2, true)), [""; 0]);
        assert!(compared(with(1, 1, true), with(1, 1, true))[0].starts_with("b: SequenceOnTable: t.n"));
        assert!(compared(with(64, 1, true), with(64, 65, true))[0].starts_with("b: SequenceOnTable"));
        assert!(compared(with(64, 1, true), with(2, 2, true))[0].starts_with("b: SequenceOnTable"));
        assert!(
            compared(with(1, 1, false), with(1, 1, false))[0].starts_with("only told: b: SequenceOnTable")
        );
    }
}
