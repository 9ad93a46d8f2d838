//! Text to nodes.

use std::collections::BTreeMap;

use serde_json::Value;

/// A piece of a template.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Output(Pipe),
    Let(String, Pipe),
    If(Vec<(Pipe, Vec<Node>)>, Vec<Node>),
    With(Pipe, Vec<Node>, Vec<Node>),
    /// One name: the item; two: index or key, and the item.
    Range {
        names: Vec<String>,
        pipe: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Calls, each given the value of the one before.
#[derive(Debug, Clone)]
pub(super) struct Pipe {
    pub(super) calls: Vec<Call>,
    /// As written, for errors.
    pub(super) text: String,
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) function: Option<String>,
    pub(super) terms: Vec<Term>,
}

#[derive(Debug, Clone)]
pub(super) enum Term {
    Literal(Value),
    /// From `.`
    Field(Vec<String>),
    /// From a variable; without a name from `$`.
    Variable(String, Vec<String>),
    Paren(Pipe),
}

#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) nodes: Vec<Node>,
    pub(super) defined: BTreeMap<String, Vec<Node>>,
}

pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    let mut parser = Parser { pieces: pieces(text)?.into_iter(), defined: BTreeMap::new() };
    let (nodes, end) = parser.block()?;
    match end {
        None => Ok(Parsed { nodes, defined: parser.defined }),
        Some(action) => Err(format!("{{{{ {action} }}}} ends nothing")),
    }
}

enum Piece {
    Text(String),
    Action(String),
}

/// Splits at `{{` and `}}`, trims where `-` says so, drops comments.
fn pieces(mut rest: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut trim_next = false;
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let mut text = if trim_next { text.trim_start() } else { text };
        let Some(after) = after else {
            pieces.push(Piece::Text(text.to_owned()));
            return Ok(pieces);
        };
        let after = match after.strip_prefix('-').filter(|after| after.starts_with(char::is_whitespace)) {
            Some(after) => {
                text = text.trim_end();
                after
            }
            None => after,
        };
        pieces.push(Piece::Text(text.to_owned()));
        let (action, left) = after.split_at_checked(action_end(after)?).ok_or(NO_END)?;
        rest = left.strip_prefix("}}").unwrap_or(left);
        let trimmed = action.strip_suffix('-').filter(|action| action.ends_with(char::is_whitespace));
        trim_next = trimmed.is_some();
        let action = trimmed.unwrap_or(action).trim();
        if !action.starts_with("/*") {
            pieces.push(Piece::Action(action.to_owned()));
        }
    }
}

/// Where the `}}` of an action is; one within quotes or a comment ends nothing.
fn action_end(action: &str) -> Result<usize, String> {
    let is_comment = action.trim_start().starts_with("/*");
    let mut from = if is_comment { action.find("*/").ok_or("an open comment")? } else { 0 };
    loop {
        let rest = action.get(from..).unwrap_or_default();
        let at = rest.find(['"', '`', '}']).ok_or(NO_END)?;
        let (found, behind) = (rest.get(at..).unwrap_or_default(), rest.get(at + 1..).unwrap_or_default());
        if found.starts_with("}}") {
            return Ok(from + at);
        }
        let quoted = match found.chars().next() {
            Some('`') => behind.find('`').map(Some),
            Some('"') => quoted(behind).map(Some),
            _ => Some(None),
        };
        // Past the quotes, or past a single brace.
        from += at + 1 + quoted.ok_or_else(|| format!("{action:?}: an open quote"))?.map_or(0, |length| length + 1);
    }
}

/// Where the quote is that ends a text which began just before.
fn quoted(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.char_indices().find_map(|(at, character)| {
        let ends = character == '"' && !is_escaped;
        is_escaped = character == '\\' && !is_escaped;
        ends.then_some(at)
    })
}

const NO_END: &str = "an action without }}";

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    defined: BTreeMap<String, Vec<Node>>,
}

impl Parser {
    /// Nodes until the action that ends this block: `end`, `else` or `else if …`; `None` at the end of the text.
    fn block(&mut self) -> Result<(Vec<Node>, Option<String>), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let (word, argument) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
            match word {
                "end" | "else" => return Ok((nodes, Some(action))),
                "if" => nodes.push(self.conditional(argument)?),
                "with" => {
                    let pipe = pipe(argument)?;
                    let (body, otherwise) = self.with_else()?;
                    nodes.push(Node::With(pipe, body, otherwise));
                }
                "range" => {
                    let (names, list) = match argument.split_once(":=") {
                        Some((names, list)) => (names.split(',').map(variable).collect::<Result<_, _>>()?, list),
                        None => (Vec::new(), argument),
                    };
                    let pipe = pipe(list)?;
                    let (body, otherwise) = self.with_else()?;
                    nodes.push(Node::Range { names, pipe, body, otherwise });
                }
                "define" => {
                    let name = argument.trim().trim_matches('"').to_owned();
                    let (body, otherwise) = self.with_else()?;
                    if !otherwise.is_empty() {
                        return Err(format!("define {name:?} has an else"));
                    }
                    self.defined.insert(name, body);
                }
                _ => match action.split_once(":=") {
                    Some((name, value)) if action.starts_with('$') => {
                        nodes.push(Node::Let(variable(name)?, pipe(value)?));
                    }
                    _ => nodes.push(Node::Output(pipe(&action)?)),
                },
            }
        }
        Ok((nodes, None))
    }

    fn conditional(&mut self, condition: &str) -> Result<Node, String> {
        let mut branches = Vec::new();
        let mut condition = condition.to_owned();
        loop {
            let (body, end) = self.block()?;
            branches.push((pipe(&condition)?, body));
            match end.as_deref() {
                Some("end") => return Ok(Node::If(branches, Vec::new())),
                Some("else") => return Ok(Node::If(branches, self.until_end()?)),
                Some(action) => match action.strip_prefix("else if ") {
                    Some(next) => condition = next.to_owned(),
                    None => return Err(format!("{{{{ {action} }}}} is not understood here")),
                },
                None => return Err(format!("{{{{ if {condition} }}}} has no end")),
            }
        }
    }

    fn with_else(&mut self) -> Result<(Vec<Node>, Vec<Node>), String> {
        let (body, end) = self.block()?;
        match end.as_deref() {
            Some("end") => Ok((body, Vec::new())),
            Some("else") => Ok((body, self.until_end()?)),
            _ => Err("a block has no end".to_owned()),
        }
    }

    fn until_end(&mut self) -> Result<Vec<Node>, String> {
        match self.block()? {
            (nodes, Some(end)) if end == "end" => Ok(nodes),
            _ => Err("an else has no end".to_owned()),
        }
    }
}

fn variable(text: &str) -> Result<String, String> {
    let name = text.trim().strip_prefix('$').ok_or_else(|| format!("{text:?} is no variable"))?;
    Ok(name.to_owned())
}

fn pipe(text: &str) -> Result<Pipe, String> {
    let tokens = tokens(text)?;
    let mut rest = tokens.as_slice();
    let pipe = read_pipe(&mut rest, text)?;
    if rest.is_empty() { Ok(pipe) } else { Err(format!("{text:?}: a ) too many")) }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    Bar,
    Word(String),
    Text(String),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        tokens.push(match character {
            '(' => Token::Open,
            ')' => Token::Close,
            '|' => Token::Bar,
            '"' | '`' => {
                let mut read = String::new();
                loop {
                    match characters.next() {
                        Some('\\') if character == '"' => match characters.next() {
                            Some('n') => read.push('\n'),
                            Some(escaped @ ('"' | '\\')) => read.push(escaped),
                            _ => return Err(format!("{text:?}: an escape that is not understood here")),
                        },
                        Some(end) if end == character => break,
                        Some(other) => read.push(other),
                        None => return Err(format!("{text:?}: an open quote")),
                    }
                }
                Token::Text(read)
            }
            space if space.is_whitespace() => continue,
            first => {
                let mut word = String::from(first);
                while let Some(next) = characters.next_if(|next| !next.is_whitespace() && !"()|\"`".contains(*next)) {
                    word.push(next);
                }
                Token::Word(word)
            }
        });
    }
    Ok(tokens)
}

fn read_pipe(rest: &mut &[Token], text: &str) -> Result<Pipe, String> {
    let mut calls = Vec::new();
    loop {
        let mut call = Call { function: None, terms: Vec::new() };
        loop {
            match rest.split_first() {
                Some((Token::Open, left)) => {
                    *rest = left;
                    call.terms.push(Term::Paren(read_pipe(rest, text)?));
                    match rest.split_first() {
                        Some((Token::Close, left)) => *rest = left,
                        _ => return Err(format!("{text:?}: a ( without )")),
                    }
                }
                Some((Token::Text(value), left)) => {
                    *rest = left;
                    call.terms.push(Term::Literal(Value::from(value.as_str())));
                }
                Some((Token::Word(word), left)) => {
                    *rest = left;
                    match term(word) {
                        Some(term) => call.terms.push(term),
                        None if call.function.is_none() && call.terms.is_empty() => call.function = Some(word.clone()),
                        None => return Err(format!("{text:?}: {word:?} is not understood here")),
                    }
                }
                _ => break,
            }
        }
        if call.function.is_none() && call.terms.is_empty() {
            return Err(format!("{text:?}: a value is missing"));
        }
        calls.push(call);
        match rest.split_first() {
            Some((Token::Bar, left)) => *rest = left,
            _ => return Ok(Pipe { calls, text: text.trim().to_owned() }),
        }
    }
}

/// A value; `None`: the name of a function.
fn term(word: &str) -> Option<Term> {
    let path = |text: &str| text.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match word {
        "true" => return Some(Term::Literal(Value::Bool(true))),
        "false" => return Some(Term::Literal(Value::Bool(false))),
        "nil" => return Some(Term::Literal(Value::Null)),
        _ => {}
    }
    if let Some(rest) = word.strip_prefix('$') {
        let (name, fields) = rest.split_once('.').unwrap_or((rest, ""));
        return Some(Term::Variable(name.to_owned(), path(fields)));
    }
    if word.starts_with('.') {
        return Some(Term::Field(path(word)));
    }
    word.parse::<i64>().ok().map(|number| Term::Literal(Value::from(number)))
}
