//! The preview as one page: no script, no font, no address; what may be loaded is said by the page itself, and is nothing
//! but its own style, by its hash. Everything that people or files wrote is escaped.

use std::fmt::Write;

use base64ct::{Base64, Encoding as _};
use fedprune_audit::html::text::{Escaped, Marked};
use sha2::{Digest as _, Sha256};

use super::PreviewReport;
use super::attack::{Attack, Outcome, ScoreReport, SizeReport, WordReport};
use super::documents::counted;
use crate::output::{bytes, count, percent, tame};

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub(super) fn page(report: &PreviewReport) -> String {
    let mut body = String::new();
    head(report, &mut body);
    documents(report, &mut body);
    sent(report, &mut body);
    reveals(report, &mut body);
    effects(&report.attack, &mut body);
    approval(report, &mut body);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; \
         form-action 'none'\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>What leaves {}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        Base64::encode_string(&Sha256::digest(STYLE.as_bytes())),
        escaped(&report.member)
    )
}

fn head(report: &PreviewReport, out: &mut String) {
    let local = match &report.attack.outcome {
        Outcome::Attacked { words: Some(_), .. } => {
            "<p class=\"keep\"><strong>Keep this page here.</strong> It names words of this silo’s own text. Nothing in it was \
             sent, and nothing in it needs to be.</p>"
        }
        _ => "<p class=\"keep\">This page names files of this silo, and no words of their text.</p>",
    };
    let _ = write!(
        out,
        "<header>\n<p class=\"kicker\">Preview of a ballot, before it is sent</p>\n<h1>What leaves <em>{}</em></h1>\n{local}\n<dl \
         class=\"ids\"><div><dt>Consortium</dt><dd>{} <code>{}</code></dd></div><div><dt>Round</dt><dd><code>{}</code></dd></div>\
         </dl>\n</header>\n",
        escaped(&report.member),
        escaped(&report.consortium),
        report.consortium_id.0.short(),
        report.round
    );
    let read = report.documents.as_ref().map_or_else(
        || ("0".to_owned(), "documents read: the round’s pruner looks at no text".to_owned()),
        |documents| {
            let tokens = count(documents.calibration_tokens);
            let read = if documents.count == 1 { "document" } else { "documents" };
            (count(documents.count as u64), format!("{read} read, {tokens} tokens used"))
        },
    );
    let ballot = (bytes(report.ballot.bytes), format!("ballot, {} as bits", bytes(report.ballot.packed_bytes)));
    let found = match &report.attack.outcome {
        Outcome::Attacked { score: ScoreReport(score), .. } => (
            format!("{} of {}", count(score.recovered as u64), count(score.distinct as u64)),
            format!("different tokens recovered; {} by frequency alone", count(score.baseline as u64)),
        ),
        Outcome::Withheld => {
            ("withheld".to_owned(), "the vote that tells most about words is made without data".to_owned())
        }
        Outcome::NoText => ("nothing".to_owned(), "depends on text in this round".to_owned()),
        Outcome::Unread { .. } => ("not known".to_owned(), "this attack does not read such masks".to_owned()),
    };
    out.push_str("<ul class=\"cards\">\n");
    for (number, (value, label)) in [read, ballot, found].into_iter().enumerate() {
        let class = if number == 2 { " class=\"main\"" } else { "" };
        let _ = writeln!(out, "<li{class}><b>{}</b><span>{}</span></li>", escaped(&value), escaped(&label));
    }
    out.push_str("</ul>\n");
    if let Some(policy) = report.policy.as_ref().filter(|policy| !policy.refused.is_empty()) {
        out.push_str("<section class=\"refused\"><h2>Refused by this site’s policy</h2>\n<ul>\n");
        for refused in &policy.refused {
            let _ = writeln!(
                out,
                "<li><code>{}</code> (line {}) {}, and {}.</li>",
                refused.rule,
                refused.line,
                escaped(&refused.allowed),
                escaped(&refused.found)
            );
        }
        out.push_str("</ul></section>\n");
    }
}

fn documents(report: &PreviewReport, out: &mut String) {
    out.push_str("<section><h2>What was read</h2>\n");
    let Some(documents) = &report.documents else {
        out.push_str("<p>Nothing: the round’s pruner looks at no text.</p></section>\n");
        return;
    };
    let _ = write!(
        out,
        "<p>{} of {} bytes, of which {} gave {} of {} tokens. What they hold is not in this page, save the words \
         below that the attack recovers.</p>\n<div class=\"wide\"><table><thead><tr><th>Document</th><th class=\"n\">Bytes</th>\
         <th class=\"n\">Windows</th><th>BLAKE3</th></tr></thead><tbody>\n",
        counted(documents.count, "document"),
        count(documents.bytes),
        count(documents.used as u64),
        counted(documents.windows, "window"),
        documents.window_tokens
    );
    for document in &documents.listed {
        let _ = writeln!(
            out,
            "<tr><td class=\"path\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td><code>{}</code></td></tr>",
            escaped(&document.file.display().to_string()),
            count(document.bytes),
            count(document.windows),
            document.digest.short()
        );
    }
    out.push_str("</tbody></table></div>\n");
    if documents.count > documents.listed.len() {
        let _ = writeln!(out, "<p>And {} more.</p>", count((documents.count - documents.listed.len()) as u64));
    }
    let _ = write!(
        out,
        "<dl class=\"digests\"><div><dt>All documents</dt><dd><code>{}</code></dd></div>",
        documents.digest
    );
    if let Some(calibration) = documents.calibration {
        let _ = write!(out, "<div><dt>Calibration windows</dt><dd><code>{calibration}</code></dd></div>");
    }
    out.push_str("</dl></section>\n");
}

fn sent(report: &PreviewReport, out: &mut String) {
    let ballot = &report.ballot;
    let encodings: Vec<String> =
        ballot.encodings.iter().map(|(name, taps)| format!("{name} for {} inputs", count(*taps as u64))).collect();
    let of = if ballot.heights == 1 {
        "the whole model".to_owned()
    } else {
        format!("block 1 of {}; those of later blocks depend on what is agreed on before them", ballot.heights)
    };
    let _ = write!(
        out,
        "<section><h2>What is sent</h2>\n<p>The ballot of {}: <strong>{} bytes</strong>, {}.</p>\n<dl class=\"digests\"><div>\
         <dt>Ballot</dt><dd><code>{}</code></dd></div></dl>\n<div class=\"wide\"><table><thead><tr><th>Message</th><th>What it \
         says</th><th class=\"n\">Size</th></tr></thead><tbody>\n",
        escaped(&of),
        count(ballot.bytes),
        escaped(&encodings.join(", ")),
        ballot.digest
    );
    for message in &report.silo.sends {
        let size = match (message.what, message.at_most_bytes) {
            ("ballot", _) if ballot.heights == 1 => bytes(ballot.bytes),
            (_, Some(most)) => format!("≤ {}", bytes(most)),
            _ => "–".to_owned(),
        };
        let class = if message.what == "never" { " class=\"never\"" } else { "" };
        let _ = writeln!(
            out,
            "<tr{class}><th scope=\"row\">{}</th><td>{}</td><td class=\"n\">{}</td></tr>",
            escaped(message.what),
            Marked(&message.says),
            escaped(&size)
        );
    }
    out.push_str("</tbody></table></div>\n<ul>\n");
    for line in &report.silo.stays {
        let _ = writeln!(out, "<li>{}</li>", Marked(line));
    }
    out.push_str("</ul></section>\n");
}

fn reveals(report: &PreviewReport, out: &mut String) {
    out.push_str("<section><h2>What this very ballot reveals</h2>\n");
    match &report.attack.outcome {
        Outcome::NoText => out.push_str("<p>Nothing: no text was looked at.</p>\n"),
        Outcome::Withheld => out.push_str(
            "<p>The votes on block 0’s q, k and v are made without data, and so are the same whatever the text: this attack has \
             nothing to read. Votes on later inputs depend on the text still.</p>\n",
        ),
        Outcome::Unread { why } => {
            let _ = writeln!(out, "<p>Not known: {}.</p>", Marked(why));
        }
        Outcome::Attacked { read_from, norms_off, unexplained, score: ScoreReport(score), words } => {
            let _ = writeln!(
                out,
                "<p>What block 0’s q, k and v read of a token depends on that token alone, so that the strengths of their input \
                 channels add up token by token. From the {} of this ballot and the public model, non-negative least squares over \
                 the vocabulary recovers <strong>{} of the {} different tokens</strong> of the {} that were used, in as many \
                 guesses. Guessing the commonest tokens of public text, without any ballot, gets {}; {} of those recovered are \
                 not among these. Unexplained: {:.2} % of a channel.</p>",
                if *read_from == "norms" { "norms" } else { "masks" },
                count(score.recovered as u64),
                count(score.distinct as u64),
                count(score.tokens),
                count(score.baseline as u64),
                count(score.beyond as u64),
                unexplained * 100.0
            );
            if let Some(off) = norms_off {
                let _ = writeln!(
                    out,
                    "<p>The ballot holds no strengths; worked out from its masks, they are off by {:.1} % in the middle and {:.1} % \
                     at the most.</p>",
                    off.median * 100.0,
                    off.largest * 100.0
                );
            }
            match words {
                Some(words) => chips(words, out),
                None => out.push_str("<p>The words are hidden, as was asked.</p>\n"),
            }
        }
    }
    for note in &report.attack.notes {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", Marked(note));
    }
    out.push_str("</section>\n");
}

fn chips(words: &[WordReport], out: &mut String) {
    out.push_str(
        "<p class=\"legend\"><span class=\"chip beyond\">recovered</span> <span class=\"chip common\">recovered, and common \
         anyway</span> <span class=\"chip wrong\">wrong</span> best guesses first</p>\n<ul class=\"chips\">\n",
    );
    for word in words {
        let class = match (word.right, word.common) {
            (true, false) => "beyond",
            (true, true) => "common",
            (false, _) => "wrong",
        };
        let _ = writeln!(
            out,
            "<li class=\"chip {class}\" title=\"held to be {:.2} % of the text\">{}</li>",
            word.share * 100.0,
            escaped(&word.word)
        );
    }
    out.push_str("</ul>\n");
}

fn effects(attack: &Attack, out: &mut String) {
    if attack.sizes.is_empty() {
        return;
    }
    let when = if attack.withheld { ", if the round did not withhold that vote" } else { "" };
    let _ = writeln!(
        out,
        "<section><h2>With less or more text</h2>\n<p>The same attack on ballots of the first tokens of these documents{when}. Bars are parts of the different tokens.</p>"
    );
    chart(&attack.sizes, out);
    out.push_str(
        "<div class=\"wide\"><table><thead><tr><th class=\"n\">Tokens</th><th class=\"n\">Different</th><th class=\"n\">Recovered</th>\
         <th class=\"n\">By frequency alone</th><th class=\"n\">Recovered beyond it</th></tr></thead><tbody>\n",
    );
    for row in attack.rows() {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td class=\"n\">{}</td>", escaped(&cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n<p>");
    out.push_str(if attack.withheld {
        "This round prunes <code>block0.qkv</code> without data: the vote that this attack reads is the same for every text."
    } else {
        "With <code>data_free = [\"block0.qkv\"]</code> in the round, the vote that this attack reads is the same for every text. \
         That is for the consortium to decide; this site’s policy can require it (<code>required_data_free</code>)."
    });
    out.push_str("</p></section>\n");
}

/// Two bars a size.
fn chart(sizes: &[SizeReport], out: &mut String) {
    const ROW: usize = 52;
    // with a word and a share to the right of the longest bar, and letters that can be read at a telephone's width
    const LEFT: f64 = 112.0;
    const WIDTH: f64 = 248.0;
    let height = ROW * sizes.len() + 34;
    let _ = writeln!(
        out,
        "<svg class=\"chart\" viewBox=\"0 0 480 {height}\" role=\"img\" aria-label=\"Part of the different tokens that is recovered, by tokens of text\">"
    );
    for (tick, share) in [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().enumerate() {
        let x = LEFT + WIDTH * share;
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"6\" x2=\"{x:.1}\" y2=\"{0}\"/><text class=\"tick\" x=\"{x:.1}\" y=\"{1}\" text-anchor=\"middle\">{2} %</text>",
            height - 26,
            height - 8,
            tick * 25
        );
    }
    for (row, report) in sizes.iter().enumerate() {
        let score = report.score.0;
        let y = 10 + row * ROW;
        let _ = writeln!(
            out,
            "<text class=\"size\" x=\"{0:.1}\" y=\"{1}\" text-anchor=\"end\">{2} tokens</text>",
            LEFT - 10.0,
            y + 24,
            count(score.tokens)
        );
        for (offset, class, number, name) in
            [(0, "attack", score.recovered, "attack"), (20, "baseline", score.baseline, "frequency")]
        {
            let width = WIDTH * number as f64 / score.distinct.max(1) as f64;
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{0}\" width=\"{width:.1}\" height=\"16\" rx=\"2\"/><text class=\"value\" x=\"{1:.1}\" y=\"{2}\">{name} {3}</text>",
                y + offset,
                LEFT + width.max(1.0) + 6.0,
                y + offset + 13,
                percent(number as u64, score.distinct as u64)
            );
        }
    }
    out.push_str("</svg>\n");
}

fn approval(report: &PreviewReport, out: &mut String) {
    out.push_str("<section><h2>Who says yes</h2>\n");
    match &report.policy {
        Some(policy) => {
            let verdict = if policy.refused.is_empty() { "refuses nothing of it" } else { "refuses it, as said above" };
            let _ = writeln!(
                out,
                "<p>This site’s policy, <code>{}</code>, {verdict}.</p>",
                escaped(&policy.file.display().to_string())
            );
        }
        None => out.push_str(
            "<p>This site has no policy: <code>policy.toml</code> in the member’s folder would be asked.</p>\n",
        ),
    }
    let bound: String = report.approval_covers.iter().map(|bound| format!("<li>{}</li>\n", escaped(bound))).collect();
    let _ = writeln!(
        out,
        "<p>An approval names the ballot and this preview by digest, and binds:</p>\n<ul>\n{bound}</ul>\n<dl \
         class=\"digests\"><div><dt>Preview</dt><dd><code>{}</code></dd></div></dl>\n<pre>{}</pre></section>",
        report.digest,
        Escaped(&report.next().lines().map(str::trim_start).collect::<Vec<_>>().join("\n"))
    );
    for warning in &report.warnings {
        let _ = writeln!(out, "<p class=\"note\">Warning: {}</p>", Marked(warning));
    }
}

/// What people wrote, or a file is called, on one line; a word that is no more than a line's end is seen too.
fn escaped(text: &str) -> String {
    Escaped(&tame(text)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_is_text_and_nothing_else() {
        assert_eq!(
            escaped("<script>alert('a&b')</script>\""),
            "&lt;script&gt;alert(&#39;a&amp;b&#39;)&lt;/script&gt;&quot;"
        );
        assert!(!escaped("\u{202e}evil\u{1b}[31m").contains(['\u{202e}', '\u{1b}']));
    }

    #[test]
    fn the_style_loads_nothing() {
        for forbidden in ["url(", "@import", "</style", "http"] {
            assert!(!STYLE.contains(forbidden), "{forbidden}");
        }
    }
}
