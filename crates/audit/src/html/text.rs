//! Words of strangers in a page: escaped, and without what would turn a line round. Times as people read them.

use std::fmt;

/// Text as it may stand between tags and in quoted attributes.
pub struct Escaped<'a>(pub &'a str);

/// The same, with digests and what stands between backticks as code.
pub struct Marked<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' => f.write_char('\n')?,
                c if fedprune_mask::is_harmful(c) => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Marked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // a backtick without a partner is left alone
        if !self.0.matches('`').count().is_multiple_of(2) {
            return plain(self.0, f);
        }
        for (index, part) in self.0.split('`').enumerate() {
            if index % 2 == 1 { write!(f, "<code>{}</code>", Escaped(part))? } else { plain(part, f)? }
        }
        Ok(())
    }
}

/// Text without backticks, digests as code.
fn plain(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let is_digest = |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    for (index, word) in text.split(' ').enumerate() {
        if index > 0 {
            f.write_str(" ")?;
        }
        // with what follows it in a sentence
        let bare = word.trim_end_matches([',', ';', ':', '.']);
        let rest = word.get(bare.len()..).unwrap_or_default();
        if is_digest(bare) { write!(f, "<code>{bare}</code>{rest}")? } else { fmt::Display::fmt(&Escaped(word), f)? }
    }
    Ok(())
}

/// A count with thousands separators.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && digits.len().saturating_sub(index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in milliseconds since 1970 as a date and time of day, in UTC; the number itself where no calendar goes.
pub fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    if days > 2_932_896 {
        return format!("{unix_ms} ms after 1970"); // beyond the year 9999
    }
    // years from March on, so that the day that some have and some have not comes last; in cycles of 400 years
    let days = days.saturating_add(719_468);
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = day.saturating_sub(day / 1460).saturating_add(day / 36_524).saturating_sub(day / 146_096) / 365;
    let before = (365 * year).saturating_add(year / 4).saturating_sub(year / 100);
    let day_of_year = day.saturating_sub(before);
    let month = (5 * day_of_year).saturating_add(2) / 153;
    let day_of_month = day_of_year.saturating_sub((153 * month).saturating_add(2) / 5).saturating_add(1);
    let (month, next) = if month < 10 { (month.saturating_add(3), 0) } else { (month.saturating_sub(9), 1) };
    let year = (400 * cycle).saturating_add(year).saturating_add(next);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_markup() {
        let text = "<script>alert('`x`')</script> \" & \u{202e}\u{1b}";
        assert_eq!(
            Escaped(text).to_string(),
            "&lt;script&gt;alert(&#39;`x`&#39;)&lt;/script&gt; &quot; &amp; \u{fffd}\u{fffd}"
        );
        assert_eq!(Marked("`<b>` and `c`").to_string(), "<code>&lt;b&gt;</code> and <code>c</code>");
        assert_eq!(Marked("one ` alone <").to_string(), "one ` alone &lt;");
        let digest = "ab".repeat(32);
        assert_eq!(Marked(&format!("a {digest}, <b")).to_string(), format!("a <code>{digest}</code>, &lt;b"));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_709_164_800, "2024-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(seconds * 1000), expected);
        }
        assert_eq!(utc(253_402_300_800_000), "253402300800000 ms after 1970");
        assert_eq!(utc(u64::MAX), format!("{} ms after 1970", u64::MAX));
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(123), "123");
    }
}
