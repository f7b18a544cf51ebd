//! The page: one file without anything from elsewhere, and what a browser may do in it.
//!
//! The policy names the style and the script by their digests, so that nothing else runs, whatever a member calls
//! itself; and the script writes text, never markup.

use base64ct::{Base64, Encoding as _};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use sha2::{Digest as _, Sha256};

const HTML: &str = include_str!("page.html");

/// The page, with its policy.
pub(super) struct Page {
    policy: HeaderValue,
}

impl Page {
    pub(super) fn new() -> Self {
        let source = |tag: &str| between(HTML, tag).map(source).unwrap_or_else(|| "'none'".to_owned());
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            source("script"),
            source("style")
        );
        Self { policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'")) }
    }

    pub(super) fn html(&self) -> Bytes {
        Bytes::from_static(HTML.as_bytes())
    }

    pub(super) fn policy(&self) -> HeaderValue {
        self.policy.clone()
    }
}

/// What stands in the only element of that name.
fn between<'a>(html: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = html.split_once(&format!("<{tag}>"))?;
    rest.split_once(&format!("</{tag}>")).map(|(inside, _)| inside)
}

/// How a policy names it: by SHA-256, in base64.
fn source(text: &str) -> String {
    let encoded = Base64::encode_string(&Sha256::digest(text.as_bytes()));
    format!("'sha256-{encoded}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_what_is_in_the_page_and_nothing_else() {
        // echo -n "doSomething();" | openssl dgst -sha256 -binary | base64
        assert_eq!(source("doSomething();"), "'sha256-RFWPLDbv2BY+rCkDzsE+0fr8ylGr2R2faWMhq4lfEQc='");
        let policy = Page::new().policy();
        let policy = policy.to_str().unwrap();
        assert!(!policy.contains("unsafe") && policy.starts_with("default-src 'none';"), "{policy}");
        assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
        for tag in ["script", "style"] {
            assert_eq!(HTML.matches(&format!("<{tag}")).count(), 1, "one <{tag}>");
        }
        // nothing that a policy without `unsafe-inline` would refuse, and nothing from elsewhere
        for never in
            ["style=\"", "onclick", "onload", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("]
        {
            assert!(!HTML.contains(never), "{never}");
        }
        for from_elsewhere in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!HTML.contains(from_elsewhere), "{from_elsewhere}");
        }
    }
}
