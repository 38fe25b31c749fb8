//! How much of a list an answer holds.

use roost_guest_proto::{MAX_DATA, MAX_LIST};
use serde::Serialize;

/// Some of a list's entries, and how many there are.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) total: usize,
    pub(super) truncated: bool,
}

/// The entries from `offset` on: `limit` of them, but no more than [`MAX_LIST`] and [`MAX_DATA`] permit. It is
/// truncated if there are others.
pub(super) fn page<T: Serialize>(all: Vec<T>, offset: Option<u64>, limit: Option<u64>) -> Page<T> {
    let total = all.len();
    let mut bytes = 0;
    let fits = |item: &T| {
        // A comma and an answer's other fields.
        bytes += serde_json::to_vec(item).map_or(MAX_DATA, |json| json.len()) + 1;
        bytes <= MAX_DATA - 4096
    };
    let offset = offset.map_or(0, |offset| usize::try_from(offset).unwrap_or(usize::MAX));
    let items: Vec<T> = all.into_iter().skip(offset).take(capped(limit)).take_while(fits).collect();
    Page { truncated: items.len() < total, items, total }
}

/// What the host asks for, or as much as there may be.
pub(super) fn capped(limit: Option<u64>) -> usize {
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MAX_LIST).min(MAX_LIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let page = page((0..5000).collect::<Vec<_>>(), None, Some(u64::from(u32::MAX)));
        assert_eq!((page.items.len(), page.total, page.truncated), (MAX_LIST, 5000, true));
        let page = super::page((0..10).collect::<Vec<_>>(), Some(8), None);
        assert_eq!((page.items.as_slice(), page.truncated), (&[8, 9][..], true));
        let page = super::page((0..10).collect::<Vec<_>>(), Some(u64::MAX), Some(0));
        assert_eq!((page.items.len(), page.total), (0, 10));
    }

    #[test]
    fn large_entries_are_fewer() {
        // Each byte is six as JSON.
        let page = page(vec!["\u{1}".repeat(20_000); 100], None, None);
        assert_eq!((page.items.len(), page.truncated), (4, true));
    }
}
