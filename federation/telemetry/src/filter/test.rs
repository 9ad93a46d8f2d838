//! One test of a filter: an operator and a value, as the kind of its field has them.

use std::fmt;

use super::{Fact, Field};

/// What is asked of one fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    Number(Order, u64, Unit),
    /// `status=5xx`: the class, and whether it is that one.
    Class(u64, bool),
    Text(Like, Box<str>, Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Like {
    Equal,
    NotEqual,
    Begins,
    Ends,
    Contains,
}

/// How a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Plain,
    Micros,
}

/// How texts are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exact,
    /// In any case.
    Folded,
    /// Equal is any of a list with commas.
    List,
    /// Equal is also what has a port behind it.
    Service,
}

/// As it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    LessOrEqual,
    GreaterOrEqual,
    Less,
    Greater,
    Begins,
    Ends,
    Contains,
}

impl Operator {
    /// The longer ones before those that they begin with.
    pub(super) const ALL: [(Self, &'static str); 9] = [
        (Self::NotEqual, "!="),
        (Self::LessOrEqual, "<="),
        (Self::GreaterOrEqual, ">="),
        (Self::Begins, "^="),
        (Self::Ends, "$="),
        (Self::Contains, "*="),
        (Self::Equal, "="),
        (Self::Less, "<"),
        (Self::Greater, ">"),
    ];

    fn order(self) -> Option<Order> {
        Some(match self {
            Self::Equal => Order::Equal,
            Self::NotEqual => Order::NotEqual,
            Self::Less => Order::Less,
            Self::LessOrEqual => Order::LessOrEqual,
            Self::Greater => Order::Greater,
            Self::GreaterOrEqual => Order::GreaterOrEqual,
            Self::Begins | Self::Ends | Self::Contains => return None,
        })
    }

    fn like(self) -> Option<Like> {
        Some(match self {
            Self::Equal => Like::Equal,
            Self::NotEqual => Like::NotEqual,
            Self::Begins => Like::Begins,
            Self::Ends => Like::Ends,
            Self::Contains => Like::Contains,
            _ => return None,
        })
    }
}

impl Test {
    /// What `field operator value` asks.
    ///
    /// # Errors
    /// What does not fit the field, as a sentence about its value.
    pub(super) fn read(field: Field, operator: Operator, value: &str) -> Result<Self, String> {
        let name = field.name();
        let kind = match field {
            Field::Status | Field::Attempts | Field::Received | Field::Sent | Field::Duration => {
                let order = operator.order();
                let order =
                    order.ok_or_else(|| format!("`{name}` is a number: compare it by =, !=, <, <=, > or >="))?;
                return Self::number(field, order, value);
            }
            Field::Service => Kind::Service,
            Field::Method | Field::Host | Field::Protocol => Kind::Folded,
            Field::Flags => Kind::List,
            _ => Kind::Exact,
        };
        let like = operator.like().ok_or_else(|| format!("`{name}` is a text: compare it by =, !=, ^=, $= or *="))?;
        Ok(Self::Text(like, value.into(), kind))
    }

    fn number(field: Field, order: Order, value: &str) -> Result<Self, String> {
        if field == Field::Duration {
            let micros = micros(value);
            let micros = micros.ok_or_else(|| format!("`{value}` is no time: write for example 250ms, 1.5s or 2m"))?;
            return Ok(Self::Number(order, micros, Unit::Micros));
        }
        if let Ok(number) = value.parse() {
            return Ok(Self::Number(order, number, Unit::Plain));
        }
        match (field, value.strip_suffix("xx").and_then(|class| class.parse().ok()), order) {
            (Field::Status, Some(class @ 1..=5), Order::Equal | Order::NotEqual) => {
                Ok(Self::Class(class, order == Order::Equal))
            }
            (Field::Status, Some(_), _) => Err("a class of statuses is 1xx to 5xx, after = or !=".to_owned()),
            _ => Err(format!("`{}` is a number, and `{value}` is none", field.name())),
        }
    }

    pub(super) fn takes(&self, fact: &Fact<'_>) -> bool {
        match (self, fact) {
            (Self::Number(order, wanted, _), Fact::Number(number)) => match order {
                Order::Equal => number == wanted,
                Order::NotEqual => number != wanted,
                Order::Less => number < wanted,
                Order::LessOrEqual => number <= wanted,
                Order::Greater => number > wanted,
                Order::GreaterOrEqual => number >= wanted,
            },
            (Self::Class(class, is_wanted), Fact::Number(status)) => (status / 100 == *class) == *is_wanted,
            (Self::Text(like, wanted, kind), Fact::Text(text)) => match like {
                Like::Equal => kind.is_equal(text, wanted),
                Like::NotEqual => !kind.is_equal(text, wanted),
                Like::Begins => kind.folded(text).starts_with(&*kind.folded(wanted)),
                Like::Ends => kind.folded(text).ends_with(&*kind.folded(wanted)),
                Like::Contains => kind.folded(text).contains(&*kind.folded(wanted)),
            },
            // What is not known is not equal, and one does not ask an order of it.
            (Self::Number(Order::NotEqual, ..) | Self::Class(_, false) | Self::Text(Like::NotEqual, ..), _) => true,
            _ => false,
        }
    }
}

impl Kind {
    fn is_equal(self, text: &str, wanted: &str) -> bool {
        match self {
            Self::Exact => text == wanted,
            Self::Folded => text.eq_ignore_ascii_case(wanted),
            Self::List => text == wanted || (!wanted.is_empty() && text.split(',').any(|one| one == wanted)),
            Self::Service => text.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')),
        }
    }

    fn folded(self, text: &str) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Folded if text.bytes().any(|byte| byte.is_ascii_uppercase()) => text.to_ascii_lowercase().into(),
            _ => text.into(),
        }
    }
}

/// A number with its unit, in microseconds.
fn micros(text: &str) -> Option<u64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6)];
    // "ms" before "s", since it ends so too.
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = if is_number { number.parse().ok()? } else { return None };
    let micros = (number * unit).round();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked in this line")]
    (0.0..=MICROS_MAX).contains(&micros).then_some(micros as u64)
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(order, number, unit) => {
                let operator = match order {
                    Order::Equal => "=",
                    Order::NotEqual => "!=",
                    Order::Less => "<",
                    Order::LessOrEqual => "<=",
                    Order::Greater => ">",
                    Order::GreaterOrEqual => ">=",
                };
                match unit {
                    Unit::Plain => write!(f, "{operator}{number}"),
                    Unit::Micros if number % 1_000 == 0 => write!(f, "{operator}{}ms", number / 1_000),
                    Unit::Micros => write!(f, "{operator}{number}us"),
                }
            }
            Self::Class(class, is_wanted) => write!(f, "{}{class}xx", if *is_wanted { "=" } else { "!=" }),
            Self::Text(like, text, _) => {
                let operator = match like {
                    Like::Equal => "=",
                    Like::NotEqual => "!=",
                    Like::Begins => "^=",
                    Like::Ends => "$=",
                    Like::Contains => "*=",
                };
                if !text.is_empty() && text.chars().all(super::parse::is_bare) {
                    return write!(f, "{operator}{text}");
                }
                write!(f, "{operator}\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            }
        }
    }
}

/// Beyond a year; exact as a floating point number.
const MICROS_MAX: f64 = 1e14;
