//! A strict reader of OpenMetrics 1.0 text: what it does not know to be right is an error.

use std::collections::{BTreeMap, BTreeSet};

/// Labels, sorted by name.
pub type Labels = BTreeMap<String, String>;

/// A metric family.
#[derive(Debug, Default, Clone)]
pub struct Family {
    pub kind: String,
    pub unit: String,
    pub help: String,
    /// Suffix and labels to value.
    pub samples: BTreeMap<(String, Labels), f64>,
}

/// Reads all families by name, or says in which line what is wrong.
pub fn parse(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end in `# EOF`")?;
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current: Option<String> = None;
    for (number, line) in body.lines().enumerate() {
        let wrong = |what: &str| format!("line {}, `{line}`: {what}", number + 1);
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (Some(word), Some(name)) = (words.next(), words.next()) else { return Err(wrong("no descriptor")) };
            let value = words.next().unwrap_or_default().to_owned();
            if !is_name(name, true) {
                return Err(wrong("no name"));
            }
            if current.as_deref() != Some(name) {
                if families.insert(name.to_owned(), Family::default()).is_some() {
                    return Err(wrong("a second family of that name, or lines of two mixed"));
                }
                current = Some(name.to_owned());
            }
            let family = families.get_mut(name).ok_or_else(|| wrong("no family"))?;
            if !family.samples.is_empty() {
                return Err(wrong("a descriptor after samples"));
            }
            let slot = match word {
                "TYPE" => &mut family.kind,
                "UNIT" => &mut family.unit,
                "HELP" => &mut family.help,
                _ => return Err(wrong("an unknown descriptor")),
            };
            if !std::mem::replace(slot, value).is_empty() {
                return Err(wrong("told twice"));
            }
            if !family.unit.is_empty() && !name.ends_with(&format!("_{}", family.unit)) {
                return Err(wrong("the name does not end in the unit"));
            }
            continue;
        }
        let name = current.clone().ok_or_else(|| wrong("a sample before any descriptor"))?;
        let family = families.get_mut(&name).ok_or_else(|| wrong("no family"))?;
        let end = line.find(['{', ' ']).ok_or_else(|| wrong("no value"))?;
        let suffix = line.get(..end).and_then(|sample| sample.strip_prefix(name.as_str()));
        let suffix = suffix.ok_or_else(|| wrong("a sample of another family"))?;
        let allowed: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_count", "_sum"],
            _ => return Err(wrong("a family without a type that we know")),
        };
        if !allowed.contains(&suffix) {
            return Err(wrong("a suffix that its type does not have"));
        }
        let (labels, value) = labels_and_value(&line[end..]).map_err(|what| wrong(&what))?;
        let counts = matches!(family.kind.as_str(), "counter" | "histogram") && suffix != "_sum";
        if counts && !(value >= 0.0 && value.fract() == 0.0) {
            return Err(wrong("a count that is none"));
        }
        if family.samples.insert((suffix.to_owned(), labels), value).is_some() {
            return Err(wrong("the same sample twice"));
        }
    }
    for (name, family) in &families {
        if family.kind == "histogram" {
            check_buckets(family).map_err(|what| format!("`{name}`: {what}"))?;
        }
    }
    Ok(families)
}

fn is_name(name: &str, colon: bool) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (colon && byte == b':');
    !name.is_empty() && name.bytes().all(allowed) && !name.as_bytes()[0].is_ascii_digit()
}

/// Reads `{name="value",…} value`, without exemplars and times.
fn labels_and_value(text: &str) -> Result<(Labels, f64), String> {
    let mut labels = Labels::new();
    let mut rest = text;
    if let Some(inside) = text.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (name, after) = rest.split_once("=\"").ok_or("no label")?;
            if !is_name(name, false) {
                return Err(format!("`{name}` is no label's name"));
            }
            let mut value = String::new();
            let mut characters = after.char_indices();
            let end = loop {
                match characters.next().ok_or("a value without an end")? {
                    (at, '"') => break at,
                    (_, '\\') => match characters.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                        _ => return Err("an unknown escape".to_owned()),
                    },
                    (_, character) => value.push(character),
                }
            };
            if labels.insert(name.to_owned(), value).is_some() {
                return Err(format!("label `{name}` twice"));
            }
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) if !more.starts_with('}') => rest = more,
                Some(_) => return Err("a comma and no label".to_owned()),
                None if rest.starts_with('}') => {}
                None => return Err("labels without a comma".to_owned()),
            }
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let number = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        // Rust reads words such as `inf` that OpenMetrics does not have
        _ if value.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) => {
            value.parse().map_err(|_| "no number".to_owned())?
        }
        _ => return Err("no number".to_owned()),
    };
    Ok((labels, number))
}

/// Buckets grow up to `+Inf`, which is the count.
fn check_buckets(family: &Family) -> Result<(), String> {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for ((suffix, labels), value) in &family.samples {
        if suffix == "_bucket" {
            let mut labels = labels.clone();
            let bound = labels.remove("le").ok_or("a bucket without `le`")?;
            let bound =
                if bound == "+Inf" { f64::INFINITY } else { bound.parse().map_err(|_| "a bound that is none")? };
            series.entry(labels).or_default().push((bound, *value));
        }
    }
    let counted: BTreeSet<&Labels> =
        family.samples.keys().filter(|(suffix, _)| suffix == "_count").map(|(_, labels)| labels).collect();
    if counted != series.keys().collect() {
        return Err("buckets and counts of different labels".to_owned());
    }
    for (labels, mut buckets) in series {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let grows = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
        let last = buckets.last().copied();
        let count = family.samples[&("_count".to_owned(), labels)];
        if !grows || last != Some((f64::INFINITY, count)) {
            return Err("buckets that do not grow up to the count".to_owned());
        }
    }
    Ok(())
}

#[test]
fn what_is_not_openmetrics_is_refused() {
    let good = "# HELP a_seconds Help.\n# TYPE a_seconds gauge\n# UNIT a_seconds seconds\na_seconds{x=\"\\\"\\n\"} 1.5\n\
                # HELP h H.\n# TYPE h histogram\nh_sum 3\nh_count 2\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n# EOF\n";
    let families = parse(good).unwrap();
    assert_eq!(families["a_seconds"].samples[&(String::new(), [("x".to_owned(), "\"\n".to_owned())].into())], 1.5);
    for (from, to) in [
        ("# EOF\n", "# EOF"),
        ("# EOF\n", ""),
        ("# EOF\n", "# EOF\n# EOF\n"),
        ("1.5\n", "1.5\n\n"),
        ("1.5\n", "inf\n"),
        ("1.5\n", "1.5\na_seconds{x=\"\\\"\\n\"} 1.5\n"),
        ("# UNIT a_seconds seconds", "# UNIT a_seconds bytes"),
        ("gauge", "counter"),
        ("x=", "1x="),
        ("x=\"\\\"\\n\"", "x=\"\\q\""),
        ("le=\"1\"} 1", "le=\"1\"} 3"),
        ("h_count 2", "h_count 3"),
        ("h_sum 3\n", "h_total 3\n"),
        ("# HELP h H.\n", "# HELP a_seconds H.\n"),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(parse(&good.replacen(from, to, 1)).is_err(), "{from} as {to}");
    }
}
