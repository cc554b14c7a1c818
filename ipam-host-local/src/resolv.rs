//! `resolvConf`: a resolver configuration that goes into the result.

use std::path::Path;

use cni::{Code, Dns, Error};

/// Reads the file. Fails with 5 if it cannot be read.
pub(crate) fn read(path: &Path) -> Result<Dns, Error> {
    let text = std::fs::read(path).map_err(|error| {
        let msg = format!("cannot read resolvConf {}: {error}", path.display());
        Error::new(Code::Io, msg)
    })?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// resolv.conf(5): a keyword and its values a line; `#` and `;` start comment
/// lines. Of several `domain` the last counts, everything else adds up.
fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(keyword), Some(value)) = (words.next(), words.next()) else { continue };
        let values = std::iter::once(value).chain(words).map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.push(value.to_owned()),
            "domain" => value.clone_into(&mut dns.domain),
            "search" => dns.search.extend(values),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_comments_and_junk() {
        let dns = parse(
            "# nameserver 1.1.1.1\n ;x y\nnameserver 10.0.0.1 ignored\n nameserver\t10.0.0.2\r\n\
             domain a\ndomain b.example\nsearch x y\nsearch z\noptions ndots:5 rotate\nnameserver\nsortlist 1\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(dns.domain, "b.example");
        assert_eq!(dns.search, ["x", "y", "z"]);
        assert_eq!(dns.options, ["ndots:5", "rotate"]);
    }
}
