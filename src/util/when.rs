//! Times as people type them.
//!
//! `2026-11-20 14:30[:05]`, `2026-11-20`, both with `Z` or `+01:00` behind a time of day;
//! `today [9:00]`, `yesterday [18:00]`, `now`; `-3h`, `-1d12h` before now, in weeks, days, hours,
//! minutes and seconds; Unix seconds of at least nine digits, any behind `@`. Without a zone they
//! are local. Pure: the present and the zone are handed in.

use super::time::{Timestamp, civil};

/// What a day without a time of day stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Day {
    /// Its first second.
    Begins,
    /// Its last second.
    Ends,
}

/// Seconds that local time is ahead of UTC at a moment.
pub type Zone<'a> = &'a dyn Fn(Timestamp) -> i64;

const DAY: i64 = 86_400;

/// The moment `text` means, or why it means none.
///
/// Where the clocks go back, a local time that comes twice is the first of both; where they go
/// forward, one that does not come is that much behind the change.
pub fn parse(text: &str, now: Timestamp, zone: Zone<'_>, day: Day) -> Result<Timestamp, String> {
    let text = text.trim();
    let bad = || {
        format!(
            "{text:?} is no time: try \"2026-11-20 14:30\", \"yesterday 18:00\", -3h, or Unix seconds"
        )
    };
    if text.eq_ignore_ascii_case("now") {
        return Ok(now);
    }
    if let Some(age) = text.strip_prefix('-') {
        let secs = duration(age).and_then(|secs| now.0.checked_sub(secs));
        return secs.map(Timestamp).ok_or_else(bad);
    }
    let digits = text.strip_prefix('@').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        let plain = digits.len() == text.len();
        let secs = digits.parse().ok().filter(|_| !plain || digits.len() >= 9);
        return secs.map(Timestamp).ok_or_else(bad);
    }
    // The T of ISO 8601 stands behind a digit, those of today and yesterday do not.
    let at = text.char_indices().find(|&(at, c)| match c {
        ' ' => true,
        'T' | 't' => text[..at].ends_with(|c: char| c.is_ascii_digit()),
        _ => false,
    });
    let (date, rest) = match at {
        Some((at, _)) => (&text[..at], text[at + 1..].trim_start()),
        None => (text, ""),
    };
    let local = Timestamp(now.0 + zone(now));
    let today = local.0.div_euclid(DAY);
    let days = match date.to_ascii_lowercase().as_str() {
        "today" => today,
        "yesterday" => today - 1,
        _ => calendar(date).ok_or_else(bad)?,
    };
    if rest.is_empty() {
        // A separator without anything behind it.
        if date.len() != text.len() {
            return Err(bad());
        }
        return Ok(match day {
            Day::Begins => from_local(days * DAY, zone),
            Day::Ends => Timestamp(from_local((days + 1) * DAY, zone).0 - 1),
        });
    }
    let (time, ahead) = split_zone(rest).ok_or_else(bad)?;
    let secs = days * DAY + clock(time).ok_or_else(bad)?;
    Ok(match ahead {
        Some(ahead) => Timestamp(secs - ahead),
        None => from_local(secs, zone),
    })
}

/// `2026-11-20 14:30:05 +0100`, in the zone handed in: what [`parse`] reads.
pub fn local(t: Timestamp, zone: Zone<'_>) -> String {
    let ahead = zone(t);
    let (y, mo, d, h, mi, s) = civil(Timestamp(t.0.saturating_add(ahead)));
    let sign = if ahead < 0 { '-' } else { '+' };
    let (hours, minutes) = (ahead.abs() / 3600, ahead.abs() / 60 % 60);
    format!("{y:04}-{mo:02}-{d:02} {h:02}:{mi:02}:{s:02} {sign}{hours:02}{minutes:02}")
}

/// A local time, counted as if it were UTC, as a moment.
fn from_local(secs: i64, zone: Zone<'_>) -> Timestamp {
    let before = zone(Timestamp(secs - DAY));
    let after = zone(Timestamp(secs + DAY));
    for ahead in [before.max(after), before.min(after)] {
        let moment = Timestamp(secs - ahead);
        if zone(moment) == ahead {
            return moment;
        }
    }
    Timestamp(secs - before)
}

/// Days since 1970 of `2026-11-20`.
fn calendar(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let year = number(parts.next()?, 4, 4)?;
    let month = number(parts.next()?, 1, 2)?;
    let day = number(parts.next()?, 1, 2)?;
    if parts.next().is_some() || !(1..=12).contains(&month) || day == 0 || year == 0 {
        return None;
    }
    // Years begin in March, so that the leap day is the last.
    let (y, m) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let (yy, mm, dd, ..) = civil(Timestamp(days * DAY));
    ((yy, i64::from(mm), i64::from(dd)) == (year, month, day)).then_some(days)
}

/// Seconds of `14:30`, `14:30:05` or `14:30:05.250`.
fn clock(time: &str) -> Option<i64> {
    let time = match time.split_once('.') {
        Some((time, fraction)) => {
            let is_fraction = !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit());
            (is_fraction && time.matches(':').count() == 2).then_some(time)?
        }
        None => time,
    };
    let mut parts = time.split(':');
    let hour = number(parts.next()?, 1, 2)?;
    let minute = number(parts.next()?, 2, 2)?;
    let second = match parts.next() {
        Some(text) => number(text, 2, 2)?,
        None => 0,
    };
    let good = parts.next().is_none() && hour < 24 && minute < 60 && second < 60;
    good.then_some(hour * 3600 + minute * 60 + second)
}

/// A time of day, and what stands behind it in seconds ahead of UTC.
fn split_zone(text: &str) -> Option<(&str, Option<i64>)> {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return Some((time.trim_end(), Some(0)));
    }
    let Some(at) = text.find(['+', '-']) else {
        return Some((text, None));
    };
    let (time, zone) = text.split_at(at);
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let zone = &zone[1..];
    let (hours, minutes) = match zone.split_once(':') {
        Some(parts) => parts,
        None if zone.len() == 4 && zone.is_ascii() => zone.split_at(2),
        None => (zone, "00"),
    };
    let (hours, minutes) = (number(hours, 2, 2)?, number(minutes, 2, 2)?);
    let ahead = sign * (hours * 3600 + minutes * 60);
    (hours <= 14 && minutes < 60).then_some((time.trim_end(), Some(ahead)))
}

/// Seconds of `3h` or `1d12h`.
fn duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut all: i64 = 0;
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit())?;
        let n: i64 = rest[..at].parse().ok()?;
        let unit = match rest.as_bytes().get(at)? {
            b'w' => 7 * DAY,
            b'd' => DAY,
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        all = all.checked_add(n.checked_mul(unit)?)?;
        rest = &rest[at + 1..];
    }
    (!text.is_empty()).then_some(all)
}

fn number(text: &str, least: usize, most: usize) -> Option<i64> {
    let good = (least..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    good.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central Europe in 2026: forward on 29 March at 01:00 UTC, back on 25 October at 01:00 UTC.
    fn berlin(t: Timestamp) -> i64 {
        match t.0 {
            1_774_746_000..1_792_890_000 => 7200,
            _ => 3600,
        }
    }

    /// Friday 20 November 2026, 12:00 UTC.
    const NOW: Timestamp = Timestamp(1_795_176_000);

    fn of(text: &str) -> Option<String> {
        let t = parse(text, NOW, &berlin, Day::Begins).ok()?;
        Some(super::super::time::iso(t))
    }

    #[test]
    fn every_form() {
        for (text, iso) in [
            ("2026-11-20 14:30", "2026-11-20T13:30:00Z"),
            ("2026-11-20 14:30:05", "2026-11-20T13:30:05Z"),
            ("2026-07-01 14:30", "2026-07-01T12:30:00Z"),
            ("2026-11-20", "2026-11-19T23:00:00Z"),
            ("2026-1-2 3:04", "2026-01-02T02:04:00Z"),
            ("2026-11-20T14:30:05Z", "2026-11-20T14:30:05Z"),
            ("2026-11-20t14:30:05.250z", "2026-11-20T14:30:05Z"),
            ("2026-11-20 14:30+01:00", "2026-11-20T13:30:00Z"),
            ("2026-11-20 14:30 -0530", "2026-11-20T20:00:00Z"),
            ("2026-11-20T14:30+02", "2026-11-20T12:30:00Z"),
            ("yesterday 18:00", "2026-11-19T17:00:00Z"),
            ("Yesterday", "2026-11-18T23:00:00Z"),
            ("today 9:00", "2026-11-20T08:00:00Z"),
            ("today", "2026-11-19T23:00:00Z"),
            ("now", "2026-11-20T12:00:00Z"),
            ("-3h", "2026-11-20T09:00:00Z"),
            ("-2d", "2026-11-18T12:00:00Z"),
            ("-90m", "2026-11-20T10:30:00Z"),
            ("-1w", "2026-11-13T12:00:00Z"),
            ("-1d12h", "2026-11-19T00:00:00Z"),
            (" 1795176001 ", "2026-11-20T12:00:01Z"),
            ("@0", "1970-01-01T00:00:00Z"),
            ("2024-02-29 00:00Z", "2024-02-29T00:00:00Z"),
        ] {
            assert_eq!(of(text).as_deref(), Some(iso), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_told() {
        for text in [
            "",
            "-",
            "-3",
            "-h",
            "-3y",
            "3h",
            "+3h",
            "2026",
            "20261120",
            "2026-02-29",
            "2026-13-01",
            "2026-00-10",
            "2026-11-31",
            "26-11-20",
            "2026-11-20 ",
            "2026-11-20 14",
            "2026-11-20 24:00",
            "2026-11-20 14:60",
            "2026-11-20 14:30:60",
            "2026-11-20 14:30:05 +9",
            "2026-11-20 14:30 x",
            "2026-11-20 14:30:05:06",
            "tomorrow",
            "today noon",
            "today at 9:00",
            "14:30",
            "@",
            "@x",
            "-99999999999999999999w",
            "99999999999999999999",
            "2026-11-20 14:30 +15:00",
            "2026-11-20 2:3",
            "\u{fc}",
            "2026-11-20 14:30+\u{fc}\u{fc}",
        ] {
            match text {
                // Trimmed, this one is a day.
                "2026-11-20 " => assert!(of(text).is_some()),
                _ => assert_eq!(of(text), None, "{text}"),
            }
        }
        let e = parse("soon", NOW, &berlin, Day::Begins).unwrap_err();
        assert!(e.contains("\"soon\" is no time"), "{e}");
    }

    #[test]
    fn clocks_that_change() {
        // 02:30 does not come on that day: half an hour behind the change.
        assert_eq!(of("2026-03-29 02:30").unwrap(), "2026-03-29T01:30:00Z");
        assert_eq!(of("2026-03-29 01:59:59").unwrap(), "2026-03-29T00:59:59Z");
        assert_eq!(of("2026-03-29 03:00").unwrap(), "2026-03-29T01:00:00Z");
        // It comes twice on this one: the first.
        assert_eq!(of("2026-10-25 02:30").unwrap(), "2026-10-25T00:30:00Z");
        assert_eq!(of("2026-10-25 01:59:59").unwrap(), "2026-10-24T23:59:59Z");
        assert_eq!(of("2026-10-25 03:00").unwrap(), "2026-10-25T02:00:00Z");
        let ends = |text| parse(text, NOW, &berlin, Day::Ends).unwrap().0;
        let begins = |text| parse(text, NOW, &berlin, Day::Begins).unwrap().0;
        assert_eq!(ends("2026-03-29") - begins("2026-03-29"), 23 * 3600 - 1);
        assert_eq!(ends("2026-10-25") - begins("2026-10-25"), 25 * 3600 - 1);
        assert_eq!(ends("today") + 1, begins("2026-11-21"));
        assert_eq!(ends("today 9:00"), begins("today 9:00"));
    }

    #[test]
    fn what_is_printed_reads_back() {
        assert_eq!(local(NOW, &berlin), "2026-11-20 13:00:00 +0100");
        for t in (1_774_740_000..1_774_760_000)
            .step_by(977)
            .chain(1_792_880_000..1_792_880_009)
        {
            for zone in [&berlin as Zone<'_>, &|_| -12_600] {
                let text = local(Timestamp(t), zone);
                assert_eq!(
                    parse(&text, NOW, &berlin, Day::Begins),
                    Ok(Timestamp(t)),
                    "{text}"
                );
            }
        }
    }
}
