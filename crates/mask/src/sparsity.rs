//! How much is pruned, kept as an exact fraction, and the pool within which a weight competes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Largest m of an n:m group.
pub const MAX_M: u32 = 64;
/// Largest denominator of a sparsity: a billion, so that nine decimal places are exact.
pub const MAX_DENOMINATOR: u32 = 1_000_000_000;

/// The fraction of weights pruned, in [0, 1), in lowest terms.
///
/// Budgets are `floor(pool × sparsity)` in integers; a float product would give `int(0.57 × 100) = 56`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, bincode::Encode)]
pub struct Sparsity {
    numerator: u32,
    denominator: u32,
}

/// Among which weights a weight competes for being kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, bincode::Encode)]
pub enum Group {
    /// The whole matrix is one pool.
    Layer,
    /// Each row (output) is a pool: Wanda's per-output comparison.
    Row,
    /// Each column (input) is a pool.
    Column,
    /// n *pruned* of each m consecutive inputs of one row.
    NofM {
        /// Pruned in each pool.
        n: u32,
        /// Pool size.
        m: u32,
    },
}

/// A sparsity or a group that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SparsityError {
    /// Neither a decimal nor a fraction.
    #[error("`{0}` is not a sparsity: write a decimal such as 0.5 or a fraction such as 57/100")]
    Syntax(String),
    /// Outside [0, 1).
    #[error("sparsity {0} is outside [0, 1): at least one weight must stay in every pool")]
    OutOfRange(String),
    /// More digits than are kept exact.
    #[error("sparsity `{0}` is too fine: at most nine decimal places, or a denominator up to 1000000000")]
    TooFine(String),
    /// No such group.
    #[error("`{0}` is not a group: use layer, row, column or n:m such as 2:4 (0 < n < m ≤ 64)")]
    Group(String),
    /// An n:m group fixes its own sparsity.
    #[error("group `{group}` fixes the sparsity at {fixed}; drop --sparsity or make it {fixed} (it was {given})")]
    Contradiction {
        /// The n:m group.
        group: Group,
        /// What it fixes.
        fixed: Sparsity,
        /// What was given.
        given: Sparsity,
    },
    /// Local n:m masks can only be tallied in the same pools.
    #[error("a local group `{local}` allows only the global group `{local}`, not `{global}`")]
    GlobalGroup {
        /// The silos' group.
        local: Group,
        /// The group asked of the tally.
        global: Group,
    },
}

impl Sparsity {
    /// `numerator / denominator`, reduced.
    ///
    /// # Errors
    /// [`SparsityError`] outside [0, 1) or with a denominator above [`MAX_DENOMINATOR`] after reduction.
    pub fn new(numerator: u64, denominator: u64) -> Result<Self, SparsityError> {
        let text = || format!("{numerator}/{denominator}");
        if numerator >= denominator {
            return Err(SparsityError::OutOfRange(text()));
        }
        let divisor = greatest_common_divisor(numerator, denominator);
        let (numerator, denominator) = (numerator / divisor, denominator / divisor);
        if denominator > u64::from(MAX_DENOMINATOR) {
            return Err(SparsityError::TooFine(text()));
        }
        Ok(Self { numerator: numerator as u32, denominator: denominator as u32 })
    }

    /// Numerator in lowest terms.
    pub fn numerator(self) -> u32 {
        self.numerator
    }

    /// Denominator in lowest terms.
    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// How many of `pool` weights are pruned: the exact floor.
    pub fn budget(self, pool: u64) -> u64 {
        let budget = u128::from(pool) * u128::from(self.numerator) / u128::from(self.denominator);
        budget as u64 // below `pool`, since the fraction is below one
    }

    /// For display and plots only; never for a budget.
    pub fn as_f64(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

impl Group {
    /// The n:m group, if 0 < n < m ≤ [`MAX_M`].
    fn n_of_m(n: u32, m: u32) -> Option<Self> {
        (n > 0 && n < m && m <= MAX_M).then_some(Group::NofM { n, m })
    }

    /// The sparsity that an n:m group fixes.
    pub fn fixed_sparsity(self) -> Option<Sparsity> {
        match self {
            Group::NofM { n, m } => Sparsity::new(u64::from(n), u64::from(m)).ok(),
            _ => None,
        }
    }

    /// Reconciles this group with an optional `--sparsity`.
    ///
    /// # Errors
    /// [`SparsityError::Contradiction`] when an n:m group and the sparsity differ.
    pub fn with_sparsity(self, given: Sparsity) -> Result<Sparsity, SparsityError> {
        match self.fixed_sparsity() {
            Some(fixed) if fixed != given => Err(SparsityError::Contradiction { group: self, fixed, given }),
            _ => Ok(given),
        }
    }

    /// Whether masks made in pools of `self` may be tallied in pools of `global`.
    ///
    /// # Errors
    /// [`SparsityError::GlobalGroup`] for a local n:m group and any other global group.
    pub fn check_global(self, global: Group) -> Result<(), SparsityError> {
        match self {
            Group::NofM { .. } if global != self => Err(SparsityError::GlobalGroup { local: self, global }),
            _ => Ok(()),
        }
    }

    /// Pruned weights of a whole matrix of this shape.
    pub fn matrix_budget(self, rows: u32, columns: u32, sparsity: Sparsity) -> u64 {
        let (rows, columns) = (u64::from(rows), u64::from(columns));
        match self {
            Group::Layer => sparsity.budget(rows * columns),
            Group::Row => rows * sparsity.budget(columns),
            Group::Column => columns * sparsity.budget(rows),
            Group::NofM { n, m } => rows * (columns / u64::from(m)) * u64::from(n),
        }
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn digits(text: &str) -> Option<u64> {
    (text.len() <= 18 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

impl FromStr for Sparsity {
    type Err = SparsityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(40).collect::<String>();
        let named = |error| match error {
            SparsityError::OutOfRange(_) => SparsityError::OutOfRange(shown()),
            SparsityError::TooFine(_) => SparsityError::TooFine(shown()),
            other => other,
        };
        let syntax = || SparsityError::Syntax(shown());
        if let Some((numerator, denominator)) = text.split_once('/') {
            let numerator = digits(numerator).ok_or_else(syntax)?;
            let denominator = digits(denominator).ok_or_else(syntax)?;
            return Sparsity::new(numerator, denominator).map_err(named);
        }
        if text.starts_with('-') && text[1..].parse::<f64>().is_ok() {
            return Err(SparsityError::OutOfRange(shown()));
        }
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        if fraction.len() > 9 && fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SparsityError::TooFine(shown()));
        }
        let whole = digits(whole).ok_or_else(syntax)?;
        let scale = 10u64.pow(fraction.len().min(9) as u32);
        let fraction = digits(fraction).ok_or_else(syntax)?;
        if whole > 0 {
            return Err(SparsityError::OutOfRange(shown()));
        }
        Sparsity::new(fraction, scale).map_err(named)
    }
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A denominator that divides 10^9 has an exact decimal; anything else is shown as a fraction.
        if MAX_DENOMINATOR.is_multiple_of(self.denominator) {
            let nanos = u64::from(self.numerator) * u64::from(MAX_DENOMINATOR / self.denominator);
            let decimals = format!("{nanos:09}");
            let decimals = decimals.trim_end_matches('0');
            write!(f, "0.{}", if decimals.is_empty() { "0" } else { decimals })
        } else {
            write!(f, "{}/{}", self.numerator, self.denominator)
        }
    }
}

impl fmt::Debug for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.numerator, self.denominator)
    }
}

impl<Context> bincode::Decode<Context> for Sparsity {
    fn decode<D: bincode::de::Decoder>(decoder: &mut D) -> Result<Self, bincode::error::DecodeError> {
        let (numerator, denominator): (u32, u32) = bincode::Decode::decode(decoder)?;
        match Sparsity::new(u64::from(numerator), u64::from(denominator)) {
            Ok(sparsity) if sparsity.numerator == numerator => Ok(sparsity),
            _ => Err(bincode::error::DecodeError::Other("sparsity is not a reduced fraction in [0, 1)")),
        }
    }
}

bincode::impl_borrow_decode!(Sparsity);

impl<Context> bincode::Decode<Context> for Group {
    fn decode<D: bincode::de::Decoder>(decoder: &mut D) -> Result<Self, bincode::error::DecodeError> {
        let variant: u32 = bincode::Decode::decode(decoder)?;
        match variant {
            0 => Ok(Group::Layer),
            1 => Ok(Group::Row),
            2 => Ok(Group::Column),
            3 => {
                let (n, m): (u32, u32) = bincode::Decode::decode(decoder)?;
                Group::n_of_m(n, m).ok_or(bincode::error::DecodeError::Other("n:m group outside 0 < n < m ≤ 64"))
            }
            _ => Err(bincode::error::DecodeError::Other("unknown group")),
        }
    }
}

bincode::impl_borrow_decode!(Group);

impl FromStr for Group {
    type Err = SparsityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || SparsityError::Group(text.chars().take(40).collect());
        match text {
            "layer" => Ok(Group::Layer),
            "row" => Ok(Group::Row),
            "column" => Ok(Group::Column),
            _ => {
                let (n, m) = text.split_once(':').ok_or_else(error)?;
                let n = digits(n).ok_or_else(error)?;
                let m = digits(m).ok_or_else(error)?;
                let (n, m) = (u32::try_from(n).map_err(|_| error())?, u32::try_from(m).map_err(|_| error())?);
                Group::n_of_m(n, m).ok_or_else(error)
            }
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Group::Layer => f.write_str("layer"),
            Group::Row => f.write_str("row"),
            Group::Column => f.write_str("column"),
            Group::NofM { n, m } => write!(f, "{n}:{m}"),
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(Sparsity);
serde_as_text!(Group);

#[cfg(test)]
mod tests {
    use super::*;

    fn sparsity(text: &str) -> Sparsity {
        text.parse().unwrap()
    }

    #[test]
    fn budgets_are_exact_floors() {
        assert_eq!(sparsity("0.57").budget(100), 57);
        assert_eq!(sparsity("57/100").budget(100), 57);
        assert_eq!(sparsity("1/3").budget(10), 3);
        assert_eq!(sparsity("0").budget(10), 0);
        assert_eq!(sparsity("0.999999999").budget(u64::MAX / 2), 9_223_372_027_631_403_770);
        assert_eq!(Group::Row.matrix_budget(10, 7, sparsity("0.5")), 30);
        assert_eq!(Group::Layer.matrix_budget(10, 7, sparsity("0.5")), 35);
        assert_eq!(Group::Column.matrix_budget(5, 7, sparsity("0.5")), 14);
        assert_eq!(Group::NofM { n: 2, m: 4 }.matrix_budget(3, 8, sparsity("0.5")), 12);
    }

    #[test]
    fn text_forms() {
        assert_eq!(sparsity("0.50"), sparsity("1/2"));
        assert_eq!(sparsity(".5".replace('.', "0.").as_str()).to_string(), "0.5");
        assert_eq!(sparsity("57/100").to_string(), "0.57");
        assert_eq!(sparsity("1/3").to_string(), "1/3");
        assert_eq!(sparsity("0").to_string(), "0.0");
        for group in ["layer", "row", "column", "2:4", "4:8"] {
            assert_eq!(group.parse::<Group>().unwrap().to_string(), group);
        }
    }

    #[test]
    fn refusals_name_what_was_given() {
        for text in ["1", "1.0", "1.5", "-0.1", "3/2", "1/0", "5/5"] {
            let error = text.parse::<Sparsity>().unwrap_err();
            assert!(matches!(error, SparsityError::OutOfRange(_)), "{text}: {error}");
            assert!(error.to_string().contains(text), "{error}");
        }
        for text in ["", "half", "0.5.5", "1/", "0x1", "٠.٥", "-", "nan", "inf", "0.-5"] {
            assert!(matches!(text.parse::<Sparsity>(), Err(SparsityError::Syntax(_))), "{text}");
        }
        assert!(matches!("0.1234567891".parse::<Sparsity>(), Err(SparsityError::TooFine(_))));
        for text in ["", "rows", "4:2", "0:4", "4:4", "2:65", "2:4:8", "-1:4"] {
            assert!(matches!(text.parse::<Group>(), Err(SparsityError::Group(_))), "{text}");
        }
    }

    #[test]
    fn n_of_m_fixes_the_sparsity_and_the_global_group() {
        let group: Group = "2:4".parse().unwrap();
        assert_eq!(group.with_sparsity(sparsity("0.5")), Ok(sparsity("0.5")));
        assert!(group.with_sparsity(sparsity("0.6")).unwrap_err().to_string().contains("0.5"));
        assert!(group.check_global(Group::Layer).is_err());
        assert!(group.check_global(group).is_ok());
        assert!(Group::Row.check_global(group).is_ok());
    }
}
