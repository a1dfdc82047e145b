//! What one thing (a piece, a length, a name) may be after a power cut: its durable value and every later one.
//!
//! Invariant: a value is durable only through a sync that began after it was set, and that succeeded; what a failed
//! sync covered stays possible, but no later sync makes it durable (A2).

/// The durable value, and those since.
#[derive(Clone)]
pub(super) struct History<T> {
    durable: T,
    later: Vec<Version<T>>,
}

#[derive(Clone)]
struct Version<T> {
    /// The event that set it.
    event: u64,
    value: T,
    /// A sync that covered it has failed, and the kernel has forgotten that it must be written.
    lost: bool,
}

impl<T> History<T> {
    pub const fn new(durable: T) -> Self {
        Self {
            durable,
            later: Vec::new(),
        }
    }

    pub fn set(&mut self, event: u64, value: T) {
        self.later.push(Version {
            event,
            value,
            lost: false,
        });
    }

    /// What it is as long as the power stays on.
    pub fn live(&self) -> &T {
        self.later.last().map_or(&self.durable, |version| &version.value)
    }

    /// A sync that began when event `begun` was the last has succeeded.
    pub fn synced(&mut self, begun: u64) {
        let kept = self.later.iter().rposition(|v| v.event <= begun && !v.lost);
        if let Some(version) = kept.and_then(|at| self.later.drain(..=at).next_back()) {
            self.durable = version.value;
        }
    }

    /// A sync that began when event `begun` was the last has failed.
    pub fn sync_failed(&mut self, begun: u64) {
        for version in self.later.iter_mut().filter(|v| v.event <= begun) {
            version.lost = true;
        }
    }

    pub fn is_settled(&self) -> bool {
        self.later.is_empty()
    }

    /// How many values a power cut may leave.
    pub fn count(&self) -> usize {
        1 + self.later.len()
    }

    /// Value number `index`: the durable one is 0, the live one the last.
    pub fn nth(&self, index: usize) -> &T {
        match index.checked_sub(1).and_then(|at| self.later.get(at)) {
            Some(version) => &version.value,
            None => &self.durable,
        }
    }

    /// Every value that a power cut may leave.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.durable).chain(self.later.iter().map(|v| &v.value))
    }
}
