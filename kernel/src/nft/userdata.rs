//! The text that goes with tables and rules: type, length and value, one byte
//! each for the first two, as `nft` writes and shows them (libnftnl, `udata.h`).

/// NFTNL_UDATA_TABLE_COMMENT and NFTNL_UDATA_RULE_COMMENT.
const COMMENT: u8 = 0;
/// NFTNL_UDATA_COMMENT_MAXLEN, the closing NUL included.
const COMMENT_BYTES: usize = 128;

/// User data that holds a comment, cut where it is too long.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let end = (0..COMMENT_BYTES).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    let text = text.get(..end).unwrap_or("");
    let mut bytes = vec![COMMENT, text.len() as u8 + 1];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// The comment in `userdata`.
pub(super) fn parse_comment(userdata: &[u8]) -> Option<&str> {
    let mut rest = userdata;
    while let [kind, length, tail @ ..] = rest {
        let (value, next) = tail.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            return std::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0'));
        }
        rest = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_back_behind_other_entries() {
        let mut bytes = vec![7, 3, 1, 2, 3];
        bytes.extend(comment("from no tunnel end"));
        assert_eq!(parse_comment(&bytes), Some("from no tunnel end"));
        assert_eq!(parse_comment(&[0, 9, 1]), None);
        assert_eq!(parse_comment(&[]), None);
    }

    #[test]
    fn a_long_comment_is_cut_between_characters() {
        let bytes = comment(&"ä".repeat(100));
        assert_eq!(bytes.len(), 2 + 127);
        assert_eq!(parse_comment(&bytes), Some("ä".repeat(63).as_str()));
    }
}
