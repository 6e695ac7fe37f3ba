//! Units are types: bytes are never a bare integer, and never a float.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A number of bytes. Arithmetic saturates: a sum that would overflow is "more than there is".
///
/// Written in a spec as an integer or as a string with a unit (`"1.5 GiB"`, `"800MB"`);
/// serialised as an integer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// `n` binary kilobytes.
    pub const fn kib(n: u64) -> Self {
        Self(n.saturating_mul(KIB))
    }

    /// `n` binary megabytes.
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(MIB))
    }

    /// `n` binary gigabytes.
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(GIB))
    }

    /// A figure in MiB as engines log it, rounded to the byte; negative and non-finite become zero.
    pub fn from_mib_f64(mib: f64) -> Self {
        Self((mib * MIB as f64).round().max(0.0) as u64)
    }

    /// This many bytes in MiB.
    pub fn as_mib(self) -> f64 {
        self.0 as f64 / MIB as f64
    }

    /// `self - other`, or `None` where that would be negative.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// Rounded up to a multiple of `step`.
    pub fn align_up(self, step: u64) -> Self {
        Self(self.0.checked_next_multiple_of(step).unwrap_or(u64::MAX))
    }

    /// The signed relative difference of `self` from `reference`: 0.02 is 2 % more.
    /// `None` where the reference is zero and `self` is not.
    pub fn relative_error(self, reference: Self) -> Option<f64> {
        match (self.0, reference.0) {
            (0, 0) => Some(0.0),
            (_, 0) => None,
            (a, b) => Some((a as f64 - b as f64) / b as f64),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            n if n >= 10 * GIB => format!("{:.1} GiB", n as f64 / GIB as f64),
            n if n >= GIB => format!("{:.2} GiB", n as f64 / GIB as f64),
            n if n >= 100 * MIB => format!("{:.0} MiB", n as f64 / MIB as f64),
            n if n >= MIB => format!("{:.1} MiB", n as f64 / MIB as f64),
            n if n >= KIB => format!("{:.1} KiB", n as f64 / KIB as f64),
            n => format!("{n} B"),
        };
        f.pad(&text)
    }
}

/// Why a text is not a number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an amount of memory: write a number with a unit, as in \"1.5 GiB\" or \"800 MB\""
)]
pub struct ParseBytesError(String);

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseBytesError(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => KIB,
            "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            "t" | "tib" => GIB * 1024,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        let number: f64 = number.trim().parse().map_err(|_| error())?;
        let bytes = number * factor as f64;
        if !bytes.is_finite() || bytes < 0.0 || bytes >= u64::MAX as f64 {
            return Err(error());
        }
        Ok(Self(bytes.round() as u64))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected an amount of memory, as in \"1.5 GiB\"")]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(n) => Ok(Self(n)),
            Raw::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Saturates at zero; where a shortfall matters use [`Bytes::checked_sub`].
impl Sub for Bytes {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Mul<u64> for Bytes {
    type Output = Self;
    fn mul(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("1 KiB", Some(1024)),
            ("1.5GiB", Some(1_610_612_736)),
            ("2g", Some(2 * GIB)),
            ("800 MB", Some(800_000_000)),
            (" 3 mib ", Some(3 * MIB)),
            ("", None),
            ("-1 GiB", None),
            ("1 parsec", None),
            ("GiB", None),
            ("1e30 GiB", None),
            ("inf", None),
        ] {
            assert_eq!(text.parse::<Bytes>().ok(), bytes.map(Bytes), "{text:?}");
        }
    }

    #[test]
    fn prints_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (2048, "2.0 KiB"),
            (94_371_840, "90.0 MiB"),
            (152 * MIB, "152 MiB"),
            (GIB + GIB / 2, "1.50 GiB"),
            (22 * GIB, "22.0 GiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Bytes(1) - Bytes(2), Bytes::ZERO);
        assert_eq!(Bytes(u64::MAX) + Bytes(1), Bytes(u64::MAX));
        assert_eq!(Bytes(u64::MAX).align_up(256), Bytes(u64::MAX));
        assert_eq!(Bytes(1).checked_sub(Bytes(2)), None);
    }
}
