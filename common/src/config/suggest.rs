//! "Did you mean": the nearest of the known names. Pure; knows nothing of configuration.

/// The candidate nearest to `word`, if it is near enough to be a slip of the fingers: at most
/// one edit for short words, one edit per three letters for longer ones. An edit is a letter
/// added, dropped or changed, or two neighbours swapped. Ties go to the first in order.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(edits, _)| (1..=limit).contains(edits))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// The number of edits between two words (optimal string alignment), letter case ignored.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut edits = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                edits = edits.min(before[j - 2] + 1);
            }
            row.push(edits);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        let check = |a, b, edits| assert_eq!(distance(a, b), edits, "{a} {b}");
        check("", "abc", 3);
        check("url", "url", 0);
        check("ulr", "url", 1);
        check("prefetch", "prefech", 1);
        check("store", "storage", 2);
        check("kitten", "sitting", 3);
    }

    #[test]
    fn only_near_names_are_suggested() {
        let names = ["url", "prefetch", "heartbeat_seconds"];
        assert_eq!(closest("ulr", names), Some("url"));
        assert_eq!(closest("heartbeat_secs", names), Some("heartbeat_seconds"));
        assert_eq!(closest("colour", names), None);
        assert_eq!(closest("x", names), None);
    }
}
