//! EBNF as llama.cpp and XGrammar write it (`root ::= ..`), to Lark.

use super::GrammarError;

/// Whether `text` defines its rules by `::=`.
pub(super) fn is_ebnf(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => skip_quoted(&mut chars, '"'),
            '#' => {
                chars.find(|c| *c == '\n');
            }
            ':' if chars.as_str().starts_with(":=") => return true,
            _ => {}
        }
    }
    false
}

fn skip_quoted(chars: &mut std::str::Chars<'_>, end: char) {
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            c if c == end => return,
            _ => {}
        }
    }
}

/// One piece of a rule.
#[derive(Debug, PartialEq)]
enum Piece {
    /// A rule's name.
    Name(String),
    /// `::=`.
    Defines,
    /// What both languages write alike, or what was already turned into Lark.
    Same(String),
}

/// The same grammar in Lark; its first rule is `root`.
pub(super) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let pieces = pieces(text)?;
    let mut lark = String::new();
    for (at, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Name(name) if pieces.get(at + 1) == Some(&Piece::Defines) => {
                lark.push_str(&format!("\n{}", rule(name)));
            }
            Piece::Name(name) => lark.push_str(&format!(" {}", rule(name))),
            Piece::Defines => lark.push(':'),
            // What is repeated stands right before its mark.
            Piece::Same(same) if ["*", "+", "?"].contains(&same.as_str()) || same.starts_with('{') => {
                lark.push_str(same);
            }
            Piece::Same(same) => lark.push_str(&format!(" {same}")),
        }
    }
    Ok(lark)
}

/// A name as Lark takes it for a rule: `root` is where a grammar starts.
fn rule(name: &str) -> String {
    if name == "root" { "start".to_owned() } else { format!("r_{}", name.replace('-', "_").to_lowercase()) }
}

fn pieces(text: &str) -> Result<Vec<Piece>, GrammarError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            _ if c.is_whitespace() => c.len_utf8(),
            '"' => {
                let end = closed(rest, '"')?;
                pieces.push(Piece::Same(rest[..end].to_owned()));
                end
            }
            '[' => {
                let end = closed(rest, ']')?;
                pieces
                    .push(Piece::Same(format!("/{}/", rest[..end].replace('/', "\\/").replace('\n', "\\n"))));
                end
            }
            '{' => {
                let end = closed(rest, '}')?;
                pieces.push(Piece::Same(rest[..end].replace(' ', "")));
                end
            }
            '.' => {
                pieces.push(Piece::Same("/(?s:.)/".to_owned()));
                1
            }
            '|' | '(' | ')' | '*' | '+' | '?' => {
                pieces.push(Piece::Same(c.to_string()));
                1
            }
            ':' if rest.starts_with("::=") => {
                pieces.push(Piece::Defines);
                3
            }
            _ if c.is_ascii_alphabetic() || c == '_' => {
                let name = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-');
                let end = rest.find(name).unwrap_or(rest.len());
                pieces.push(Piece::Name(rest[..end].to_owned()));
                end
            }
            _ => {
                let near: String = rest.chars().take(20).collect();
                return Err(GrammarError::Refused {
                    message: format!("the grammar cannot be read at `{near}`"),
                });
            }
        };
        rest = &rest[length..];
    }
    Ok(pieces)
}

/// Bytes up to and with the mark that closes what `rest` opens.
fn closed(rest: &str, end: char) -> Result<usize, GrammarError> {
    let mut chars = rest.chars();
    chars.next();
    skip_quoted(&mut chars, end);
    let length = rest.len() - chars.as_str().len();
    if length > 1 && rest[..length].ends_with(end) {
        return Ok(length);
    }
    let near: String = rest.chars().take(20).collect();
    Err(GrammarError::Refused { message: format!("`{end}` is missing after `{near}`") })
}
