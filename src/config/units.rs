//! Durations, sizes and ranges with their units. A number without a unit is never guessed at.

use std::time::Duration;

use super::diagnostic::{Invalid, quoted};
use super::model::{Backoff, Rate};

const DURATIONS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];
const SIZES: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads a whole number and one of `ms`, `s`, `m`, `h`, `d`; several may follow one another: `1h30m`.
///
/// # Errors
///
/// Says what is wrong and, where it can be told, what was meant.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    read_duration(text).ok_or_else(|| {
        Invalid::new(format!(
            "{}; write a whole number and `ms`, `s`, `m`, `h` or `d`, such as 250ms",
            problem(text, "duration")
        ))
        .hint(meant(text, duration_unit).filter(|meant| read_duration(meant).is_some()))
    })
}

/// Reads a whole number and one of `B`, `KiB`, `MiB`, `GiB`, `TiB`; the result is in bytes.
///
/// # Errors
///
/// Says what is wrong and, where it can be told, what was meant.
pub fn parse_size(text: &str) -> Result<u64, Invalid> {
    read_size(text).ok_or_else(|| {
        Invalid::new(format!(
            "{}; write a whole number and `B`, `KiB`, `MiB`, `GiB` or `TiB`, such as 64KiB",
            problem(text, "size")
        ))
        .hint(meant(text, size_unit).filter(|meant| read_size(meant).is_some()))
    })
}

/// Reads a range of durations, `25ms..250ms`.
pub(super) fn parse_backoff(text: &str) -> Result<Backoff, Invalid> {
    let Some((first, longest)) = text.split_once("..") else {
        let twice = parse_duration(text).ok().map(|_| format!("{text}..{text}"));
        let reason = format!(
            "{} is not a range of durations, such as 25ms..250ms",
            quoted(text)
        );
        return Err(Invalid::new(reason).hint(twice));
    };
    let backoff = Backoff {
        first: parse_duration(first)?,
        longest: parse_duration(longest)?,
    };
    if backoff.first > backoff.longest {
        let reason = format!("the range {} ends before it begins", quoted(text));
        return Err(Invalid::new(reason).hint(format!("{longest}..{first}")));
    }
    Ok(backoff)
}

/// Reads calls in a time, `100/s`; the burst is as large.
pub(super) fn parse_rate(text: &str) -> Result<Rate, Invalid> {
    let wrong = || {
        let reason = format!(
            "{} is not a rate; write a whole number, `/` and `s`, `m` or `h`, such as 100/s",
            quoted(text)
        );
        let plain = text.parse::<u32>().is_ok_and(|calls| calls > 0);
        Invalid::new(reason).hint(plain.then(|| format!("{text}/s")))
    };
    let (calls, per) = text.split_once('/').ok_or_else(wrong)?;
    let calls: u32 = calls.parse().map_err(|_| wrong())?;
    let seconds = match per {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    if calls == 0 {
        return Err(wrong());
    }
    Ok(Rate {
        calls,
        per: Duration::from_secs(seconds),
        burst: calls,
    })
}

/// A duration as this file would write it.
pub fn duration(value: Duration) -> String {
    if value.is_zero() {
        return "0s".to_owned();
    }
    largest(
        u64::try_from(value.as_millis()).unwrap_or(u64::MAX),
        &DURATIONS,
    )
}

/// A size as this file would write it.
pub fn size(value: u64) -> String {
    largest(value, &SIZES)
}

fn read_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis: u64 = 0;
    let mut below = u64::MAX;
    loop {
        let (number, after) = split_number(rest)?;
        let end = after
            .find(|letter: char| letter.is_ascii_digit())
            .unwrap_or(after.len());
        let scale = scale(&after[..end], &DURATIONS)?;
        if scale >= below {
            return None;
        }
        millis = millis.checked_add(number.checked_mul(scale)?)?;
        below = scale;
        rest = &after[end..];
        if rest.is_empty() {
            return Some(Duration::from_millis(millis));
        }
    }
}

fn read_size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    number.checked_mul(scale(unit, &SIZES)?)
}

fn largest(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, scale): &&(&str, u64)| value >= *scale && value.is_multiple_of(*scale);
    match units.iter().rev().find(fits) {
        Some((unit, scale)) => format!("{}{unit}", value / scale),
        None => format!("{value}{}", units[0].0),
    }
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let leading_zero = end > 1 && text.starts_with('0');
    if leading_zero {
        None
    } else {
        Some((text[..end].parse().ok()?, &text[end..]))
    }
}

fn scale(unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    units
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, scale)| *scale)
}

fn problem(text: &str, kind: &str) -> String {
    let bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if bare {
        format!("{} has no unit", quoted(text))
    } else {
        format!("{} is not a {kind}", quoted(text))
    }
}

/// What a number with a foreign unit stands for.
fn meant(text: &str, unit: fn(&str) -> Option<&'static str>) -> Option<String> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, name) = text.split_at(end);
    let unit = unit(&name.trim().to_ascii_lowercase())?;
    match number.split_once('.') {
        None => Some(format!("{number}{unit}")),
        Some(("0", "5")) if unit == "s" => Some("500ms".to_owned()),
        Some((whole, "5")) if unit == "s" => Some(format!("{whole}500ms")),
        Some(_) => None,
    }
}

fn duration_unit(name: &str) -> Option<&'static str> {
    Some(match name {
        "ms" | "msec" | "millis" | "milliseconds" => "ms",
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hr" | "hour" | "hours" => "h",
        "d" | "day" | "days" => "d",
        _ => return None,
    })
}

fn size_unit(name: &str) -> Option<&'static str> {
    Some(match name {
        "b" | "byte" | "bytes" => "B",
        "k" | "kb" | "ki" | "kib" => "KiB",
        "m" | "mb" | "mi" | "mib" => "MiB",
        "g" | "gb" | "gi" | "gib" => "GiB",
        "t" | "tb" | "ti" | "tib" => "TiB",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_whole_number_with_a_unit() {
        let millis = |text| parse_duration(text).unwrap().as_millis();
        assert_eq!(millis("250ms"), 250);
        assert_eq!(millis("15s"), 15_000);
        assert_eq!(millis("1h30m"), 5_400_000);
        assert_eq!(millis("7d"), 604_800_000);
        assert_eq!(millis("0s"), 0);
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1s1m",
            "1s1s",
            "05s",
            "1.5h",
            "18446744073709551615d",
            "1µs",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_foreign_unit_gets_the_right_one_as_a_hint() {
        let hint = |text| parse_duration(text).unwrap_err().hint;
        assert_eq!(hint("2 sec").as_deref(), Some("2s"));
        assert_eq!(hint("0.5s").as_deref(), Some("500ms"));
        assert_eq!(hint("5S").as_deref(), Some("5s"));
        assert_eq!(hint("soon"), None);
        assert_eq!(
            parse_size("64kb").unwrap_err().hint.as_deref(),
            Some("64KiB")
        );
        assert_eq!(parse_size("1M").unwrap_err().hint.as_deref(), Some("1MiB"));
    }

    #[test]
    fn a_size_counts_in_binary_units() {
        assert_eq!(parse_size("64KiB").unwrap(), 65_536);
        assert_eq!(parse_size("0B").unwrap(), 0);
        for bad in ["64", "KiB", "1.5MiB", "99999999999TiB", "064B"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_rises() {
        assert_eq!(
            parse_backoff("25ms..1s").unwrap().longest,
            Duration::from_secs(1)
        );
        assert_eq!(
            parse_backoff("1s..25ms").unwrap_err().hint.as_deref(),
            Some("25ms..1s")
        );
        assert!(parse_backoff("1s..").is_err());
    }

    #[test]
    fn values_are_written_in_their_largest_unit() {
        assert_eq!(duration(Duration::from_secs(90)), "90s");
        assert_eq!(duration(Duration::from_secs(3600)), "1h");
        assert_eq!(duration(Duration::ZERO), "0s");
        assert_eq!(size(1 << 30), "1GiB");
        assert_eq!(size(1000), "1000B");
    }
}
