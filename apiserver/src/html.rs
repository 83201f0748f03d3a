//! Finds the links of an HTML page, and changes them where they stand; all other bytes stay as they are.
//!
//! Upstream counterpart: `apimachinery/pkg/util/proxy/transport.go` (`rewriteHTML`, v1.33), which writes each changed tag anew.

/// Attributes that hold one URL, by tag.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is text, whatever it looks like.
const RAW: [&str; 4] = ["script", "style", "textarea", "title"];

/// The page with every link replaced by what `rewrite` makes of it. Entities in links: `&amp;` only.
pub fn rewrite_links(page: &[u8], rewrite: impl Fn(&str) -> String) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.len() + page.len() / 8);
    let mut at = 0;
    while let Some(open) = find(page, at, b"<") {
        out.extend_from_slice(&page[at..open]);
        at = match () {
            () if page[open..].starts_with(b"<!--") => copy_through(page, open, b"-->", &mut out),
            () if page.get(open + 1).is_some_and(u8::is_ascii_alphabetic) => tag(page, open, &rewrite, &mut out),
            () => copy_through(page, open, b"<", &mut out),
        };
    }
    out.extend_from_slice(&page[at.min(page.len())..]);
    out
}

fn find(page: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    page.get(from..)?.windows(what.len()).position(|w| w.eq_ignore_ascii_case(what)).map(|at| from + at)
}

/// Copy up to the end of `mark`, or to the end.
fn copy_through(page: &[u8], from: usize, mark: &[u8], out: &mut Vec<u8>) -> usize {
    let end = find(page, from, mark).map_or(page.len(), |at| at + mark.len());
    out.extend_from_slice(&page[from..end]);
    end
}

/// Copy the tag that starts at `open`, its links changed, and the text of raw elements behind it.
fn tag(page: &[u8], open: usize, rewrite: &impl Fn(&str) -> String, out: &mut Vec<u8>) -> usize {
    let name_end = end_of(page, open + 1, |b| b.is_ascii_whitespace() || b == b'>' || b == b'/');
    let name = String::from_utf8_lossy(&page[open + 1..name_end]).to_ascii_lowercase();
    let links = LINKS.iter().find(|(tag, _)| *tag == name).map_or(&[][..], |(_, attributes)| attributes);
    out.extend_from_slice(&page[open..name_end]);
    let mut at = name_end;
    while at < page.len() && page[at] != b'>' {
        at = attribute(page, at, links, rewrite, out);
    }
    if at < page.len() {
        out.push(b'>');
        at += 1;
    }
    if !RAW.contains(&name.as_str()) {
        return at;
    }
    let end = find(page, at, format!("</{name}").as_bytes()).unwrap_or(page.len());
    out.extend_from_slice(&page[at..end]);
    end
}

/// Copy one attribute, or one byte that is none.
fn attribute(page: &[u8], from: usize, links: &[&str], rewrite: &impl Fn(&str) -> String, out: &mut Vec<u8>) -> usize {
    let name_end = end_of(page, from, |b| b.is_ascii_whitespace() || matches!(b, b'=' | b'>' | b'/'));
    if name_end == from {
        out.push(page[from]);
        return from + 1;
    }
    let equals = end_of(page, name_end, |b| !b.is_ascii_whitespace());
    if page.get(equals) != Some(&b'=') {
        out.extend_from_slice(&page[from..name_end]);
        return name_end;
    }
    let start = end_of(page, equals + 1, |b| !b.is_ascii_whitespace());
    let quote = page.get(start).copied().filter(|b| matches!(b, b'"' | b'\''));
    let start = start + usize::from(quote.is_some());
    let end = match quote {
        Some(quote) => end_of(page, start, |b| b == quote),
        None => end_of(page, start, |b| b.is_ascii_whitespace() || b == b'>'),
    };
    out.extend_from_slice(&page[from..start]);
    let name = String::from_utf8_lossy(&page[from..name_end]).to_ascii_lowercase();
    match std::str::from_utf8(&page[start..end]) {
        Ok(link) if links.contains(&name.as_str()) => {
            let link = rewrite(&link.replace("&amp;", "&")).replace('&', "&amp;");
            out.extend_from_slice(link.as_bytes());
        }
        _ => out.extend_from_slice(&page[start..end]),
    }
    end + copy_quote(page, end, quote, out)
}

fn copy_quote(page: &[u8], at: usize, quote: Option<u8>, out: &mut Vec<u8>) -> usize {
    if quote.is_none() || at >= page.len() {
        return 0;
    }
    out.push(page[at]);
    1
}

fn end_of(page: &[u8], from: usize, stop: impl Fn(u8) -> bool) -> usize {
    page.get(from..).and_then(|rest| rest.iter().position(|b| stop(*b))).map_or(page.len(), |at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_change() {
        let cases = [
            (r#"<a href="/x">/x</a>"#, r#"<a href="P/x">/x</a>"#),
            ("<A HREF=/x class=b>", "<A HREF=P/x class=b>"),
            ("<img alt='/no' src = '/x'/>", "<img alt='/no' src = 'P/x'/>"),
            ("<a href='/x?a=1&amp;b=2' disabled>", "<a href='P/x?a=1&amp;b=2' disabled>"),
            ("<p href=/x>1 < 2</p>", "<p href=/x>1 < 2</p>"),
            ("<!-- <a href=/x> --><a href=/x>", "<!-- <a href=/x> --><a href=P/x>"),
            ("<script src=/x>'<a href=/x>'</SCRIPT><a href=/x>", "<script src=P/x>'<a href=/x>'</SCRIPT><a href=P/x>"),
            ("<a href=\"/x", "<a href=\"P/x"),
            ("<a", "<a"),
            ("<!DOCTYPE html><link href=\"/x\">", "<!DOCTYPE html><link href=\"P/x\">"),
            ("", ""),
        ];
        for (page, expected) in cases {
            let got = rewrite_links(page.as_bytes(), |link| format!("P{link}"));
            assert_eq!(String::from_utf8_lossy(&got), expected, "{page}");
        }
    }
}
