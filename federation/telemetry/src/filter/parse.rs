//! Text to filter, with the place of what is wrong.

use super::test::{Operator, Test};
use super::{Field, Filter, Node};

/// What is wrong with a filter, and where: `line:column: what`, both counted from 1, in characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct FilterError {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Filter {
    /// Reads a filter; an empty one takes every request.
    ///
    /// # Errors
    /// What is not understood, and where it begins.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let mut parser = Parser { text, at: 0, depth: 0, tests: 0 };
        if text.len() > TEXT_BYTES_MAX {
            return Err(parser.error(0, format!("a filter has at most {TEXT_BYTES_MAX} bytes")));
        }
        parser.skip_blanks();
        if parser.rest().is_empty() {
            return Ok(Self::default());
        }
        let node = parser.any()?;
        match parser.rest().chars().next() {
            None => Ok(Self(Some(node))),
            Some(_) => Err(parser.error(parser.at, "there is no `(` for this `)`")),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// In bytes, always where a character begins.
    at: usize,
    depth: usize,
    tests: usize,
}

impl<'a> Parser<'a> {
    fn any(&mut self) -> Result<Node, FilterError> {
        let mut nodes = vec![self.all()?];
        while self.keyword("or") {
            nodes.push(self.all()?);
        }
        Ok(one_or(nodes, Node::Any))
    }

    fn all(&mut self) -> Result<Node, FilterError> {
        let mut nodes = vec![self.one()?];
        loop {
            let is_asked = self.keyword("and");
            let is_over = self.rest().is_empty() || self.rest().starts_with(')') || self.sees("or");
            if is_over && !is_asked {
                return Ok(one_or(nodes, Node::All));
            }
            nodes.push(self.one()?);
        }
    }

    fn one(&mut self) -> Result<Node, FilterError> {
        let begins = self.at;
        if self.depth >= DEPTH_MAX {
            return Err(self.error(begins, format!("at most {DEPTH_MAX} levels of `(` and `not` are understood")));
        }
        if self.keyword("not") {
            self.depth += 1;
            let inner = self.one()?;
            self.depth -= 1;
            return Ok(Node::Not(Box::new(inner)));
        }
        if self.rest().starts_with('(') {
            self.advance(1);
            self.depth += 1;
            let inner = self.any()?;
            self.depth -= 1;
            if !self.rest().starts_with(')') {
                return Err(self.error(begins, "there is no `)` for this `(`"));
            }
            self.advance(1);
            return Ok(inner);
        }
        self.test()
    }

    fn test(&mut self) -> Result<Node, FilterError> {
        let begins = self.at;
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if name.is_empty() {
            let found = self.rest().chars().next();
            let found = found.map_or("the end".to_owned(), |c| format!("`{}`", c.escape_default()));
            return Err(self.error(begins, format!("a field belongs here, not {found}; {}", fields())));
        }
        let field = Field::of(name);
        let field = field.ok_or_else(|| self.error(begins, format!("`{name}` is no field; {}", fields())))?;
        self.skip_blanks();
        let operator = Operator::ALL.iter().find(|(_, text)| self.rest().starts_with(text));
        let Some((operator, text)) = operator else {
            let message = format!("`{name}` is compared by one of =, !=, <, <=, >, >=, ^=, $= and *=");
            return Err(self.error(self.at, message));
        };
        self.advance(text.len());
        let value_begins = self.at;
        let value = self.value(name)?;
        self.skip_blanks();
        self.tests += 1;
        if self.tests > TESTS_MAX {
            return Err(self.error(begins, format!("a filter has at most {TESTS_MAX} comparisons")));
        }
        let test = Test::read(field, *operator, &value).map_err(|message| self.error(value_begins, message))?;
        Ok(Node::Is(field, test))
    }

    fn value(&mut self, name: &str) -> Result<String, FilterError> {
        let begins = self.at;
        if !self.rest().starts_with('"') {
            let word = self.take_while(is_bare);
            let is_whole = self.rest().chars().next().is_none_or(|c| c.is_whitespace() || c == ')');
            return match (word, is_whole) {
                ("", _) => {
                    Err(self.error(begins, format!("a value of `{name}` belongs here; \"…\" may hold anything")))
                }
                (_, false) => Err(self.error(self.at, "write a value with this character in it as \"…\"")),
                (word, true) => Ok(word.to_owned()),
            };
        }
        let mut value = String::new();
        let mut characters = self.rest().char_indices().skip(1);
        while let Some((index, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += index + 1;
                    return Ok(value);
                }
                '\\' => match characters.next() {
                    Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                    _ => return Err(self.error(self.at + index, "after \\ comes \" or \\")),
                },
                character => value.push(character),
            }
        }
        Err(self.error(begins, "there is no second \" for this one"))
    }

    /// Takes a word, if it is the next one, and no field of that name.
    fn keyword(&mut self, word: &str) -> bool {
        let is_next = self.sees(word);
        if is_next {
            self.advance(word.len());
        }
        is_next
    }

    fn sees(&self, word: &str) -> bool {
        let rest = self.rest().strip_prefix(word);
        rest.is_some_and(|rest| rest.chars().next().is_none_or(|c| c.is_whitespace() || c == '('))
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// Over what was just read, and blanks behind it.
    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.skip_blanks();
    }

    fn skip_blanks(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn error(&self, at: usize, message: impl Into<String>) -> FilterError {
        let before = self.text.get(..at).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        let lines = before.matches('\n').count() + 1;
        FilterError { line: lines, column: line.chars().count() + 1, message: message.into() }
    }
}

fn one_or(mut nodes: Vec<Node>, several: impl Fn(Vec<Node>) -> Node) -> Node {
    match nodes.len() {
        1 => nodes.remove(0),
        _ => several(nodes),
    }
}

fn fields() -> String {
    let names: Vec<&str> = Field::ALL.iter().map(|(_, name, _)| *name).collect();
    format!("there are {}", names.join(", "))
}

/// What a value may have without quotes.
pub(super) fn is_bare(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '(' | ')' | '=' | '<' | '>' | '!' | '\\')
}

/// Longer than anybody writes; what a gateway keeps of one is a few times that.
const TEXT_BYTES_MAX: usize = 2_048;
/// Of recursion.
const DEPTH_MAX: usize = 16;
/// Each request is asked so much at most, while somebody looks.
const TESTS_MAX: usize = 32;
