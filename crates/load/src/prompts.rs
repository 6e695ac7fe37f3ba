//! Texts of a given count of tokens, of random words, so that no cache of prefixes helps.
//!
//! A text is guessed by proportion, counted by the engine's tokenizer and corrected: two or three
//! counts make it exact, as each of its words is a token or two.

use bytes::Bytes;

use crate::tokenizer::{TokenizeError, Tokenizer};
use crate::words::WORDS;

/// English in most tokenizers, where nothing better is known.
const WORDS_PER_TOKEN: f64 = 0.75;
/// A word is a token at least, and none of ours is more than so many, whatever a tokenizer says.
const FEWEST_WORDS_PER_TOKEN: f64 = 0.05;
/// A text is counted so often at most.
const MOST_COUNTS: usize = 8;
/// No model reads more.
const MOST_TOKENS: u32 = 16 << 20;

/// A text and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Lower-case words with a space between: nothing in it has to be escaped.
    text: Bytes,
    /// How many tokens it is.
    pub tokens: u32,
    /// Whether that is a guess: nobody counted.
    pub is_estimated: bool,
}

impl Prompt {
    /// The text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    /// The same words from another one on, without a copy: as long as this, and with another beginning.
    pub(crate) fn rotated(&self, by: usize) -> [Bytes; 3] {
        let at = by.checked_rem(self.text.len()).unwrap_or_default();
        match memchr::memchr(b' ', &self.text[at..]) {
            Some(space) if at > 0 => {
                let at = at + space;
                let (first, rest) = (self.text.slice(..at), self.text.slice(at + 1..));
                [rest, Bytes::from_static(b" "), first]
            }
            _ => [self.text.clone(), Bytes::new(), Bytes::new()],
        }
    }
}

/// So many texts of so many tokens; counted where there is a tokenizer.
pub async fn make(
    tokenizer: Option<&Tokenizer>,
    how_many: usize,
    tokens: u32,
    seed: u64,
) -> Result<Vec<Prompt>, TokenizeError> {
    let mut maker = Maker::new(seed);
    let mut prompts = Vec::with_capacity(how_many);
    for _ in 0..how_many {
        prompts.push(match tokenizer {
            Some(tokenizer) => {
                maker.counted(tokens, async |text| tokenizer.count(text).await).await?
            }
            None => maker.estimated(tokens),
        });
    }
    Ok(prompts)
}

/// Makes texts, and learns how many words a token is.
struct Maker {
    random: fastrand::Rng,
    words_per_token: f64,
    /// Words still to come before any comes again.
    deck: Vec<&'static str>,
}

impl Maker {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, words_per_token: WORDS_PER_TOKEN, deck: Vec::new() }
    }

    fn estimated(&mut self, tokens: u32) -> Prompt {
        let tokens = tokens.clamp(1, MOST_TOKENS);
        let words = self.words_for(tokens);
        prompt(&self.take(words), tokens, true)
    }

    /// The longest text found that is no longer than asked: a longer one may not fit a model.
    async fn counted<E>(
        &mut self,
        tokens: u32,
        count: impl AsyncFn(&str) -> Result<u32, E>,
    ) -> Result<Prompt, E> {
        let want = tokens.clamp(1, MOST_TOKENS);
        let how_many = self.words_for(want);
        let mut words = self.take(how_many);
        let mut best: Option<Prompt> = None;
        for _ in 0..MOST_COUNTS {
            let got = count(&words.join(" ")).await?;
            let words_per_token = words.len() as f64 / f64::from(got);
            self.words_per_token = words_per_token.clamp(FEWEST_WORDS_PER_TOKEN, 1.0);
            if best.as_ref().is_none_or(|best| is_nearer(got, best.tokens, want)) {
                best = Some(prompt(&words, got, false));
            }
            if got == want {
                break;
            }
            self.correct(&mut words, got, want);
        }
        Ok(best.unwrap_or_else(|| prompt(&words, want, true)))
    }

    fn correct(&mut self, words: &mut Vec<&'static str>, got: u32, want: u32) {
        let change = self.words_for(got.abs_diff(want));
        if got < want {
            let room = (want as usize).saturating_sub(words.len());
            words.extend(self.take(change.min(room)));
        } else {
            // One word is left, and it is another one: it may be shorter.
            words.truncate(words.len().saturating_sub(change));
            if words.is_empty() {
                words.extend(self.take(1));
            }
        }
    }

    fn words_for(&self, tokens: u32) -> usize {
        ((f64::from(tokens) * self.words_per_token).round() as usize).max(1)
    }

    fn take(&mut self, how_many: usize) -> Vec<&'static str> {
        let next = || {
            if self.deck.is_empty() {
                self.deck.extend(WORDS);
                self.random.shuffle(&mut self.deck);
            }
            self.deck.pop().unwrap_or_default()
        };
        std::iter::repeat_with(next).take(how_many).collect()
    }
}

fn prompt(words: &[&str], tokens: u32, is_estimated: bool) -> Prompt {
    Prompt { text: words.join(" ").into(), tokens, is_estimated }
}

/// Whether one count is nearer than another; any that isn't too long is nearer than one that is.
fn is_nearer(one: u32, other: u32, want: u32) -> bool {
    let distance = |count: u32| (count > want, count.abs_diff(want));
    distance(one) < distance(other)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// A word is one token for each so many letters, begun ones counted; and some come with every text.
    fn fake(text: &str, letters: usize, always: u32) -> u32 {
        text.split(' ').map(|word| word.len().div_ceil(letters) as u32).sum::<u32>() + always
    }

    /// What doesn't wait is ready at once.
    fn now<T>(future: impl Future<Output = T>) -> T {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ready) => ready,
            Poll::Pending => panic!("it waits"),
        }
    }

    #[test]
    fn texts_are_as_long_as_asked() {
        for (tokens, letters, always, most_off, most_counts) in [
            (1000, 20, 0, 0, 3),
            (1000, 20, 1, 0, 3),
            (32_000, 20, 0, 0, 4),
            (1000, 4, 0, 1, 8),
            (7, 20, 0, 0, 4),
            (1, 20, 0, 0, 3),
            (0, 20, 0, 0, 3),
            (500, 3, 2, 2, 8),
        ] {
            let mut maker = Maker::new(9);
            for nth in 0..4 {
                let counts = Cell::new(0);
                let count = async |text: &str| {
                    counts.set(counts.get() + 1);
                    Ok::<_, Infallible>(fake(text, letters, always))
                };
                let Ok(made) = now(maker.counted(tokens, count));
                let case = format!("{tokens} tokens of {letters} letters, text {nth}");
                assert_eq!(made.tokens, fake(made.text(), letters, always), "{case}");
                assert!(made.tokens.abs_diff(tokens.max(1)) <= most_off, "{case}: {}", made.tokens);
                assert!(made.tokens <= tokens.max(1), "{case}");
                assert!(counts.get() <= most_counts, "{case}: {} counts", counts.get());
                assert!(!made.is_estimated, "{case}");
            }
        }
    }

    #[test]
    fn a_tokenizer_that_counts_nonsense_ends() {
        for nonsense in [0, 1, u32::MAX] {
            let mut maker = Maker::new(1);
            let Ok(made) = now(maker.counted(100, async |_| Ok::<_, Infallible>(nonsense)));
            assert_eq!(made.tokens, nonsense);
        }
    }

    #[test]
    fn texts_differ_and_are_the_same_for_a_seed() {
        let make = |seed| now(super::make(None, 3, 400, seed)).unwrap();
        let texts = make(1);
        assert_eq!(texts, make(1));
        assert_ne!(texts, make(2));
        assert!(texts.iter().all(|one| one.tokens == 400 && one.is_estimated));
        assert_eq!(texts[0].text().split(' ').count(), 300);
        assert_ne!(texts[0], texts[1]);
    }

    #[test]
    fn a_rotated_text_has_the_same_words() {
        let prompt = Maker::new(3).estimated(80);
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            words.sort();
            words
        };
        for by in 0..600 {
            let text = prompt.rotated(by).concat();
            let text = std::str::from_utf8(&text).unwrap();
            assert_eq!(sorted(text), sorted(prompt.text()), "rotated by {by}");
        }
        assert_ne!(prompt.rotated(50).concat(), prompt.text().as_bytes());
    }
}
