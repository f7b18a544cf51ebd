//! What a hub says of a model: the list of its files, and the index of its weights.

use fedprune_hub::{Listing, Needed, RepositoryName, Weights, shards};

/// Between the list and the index; no JSON has it.
pub(crate) const SEPARATOR: u8 = 0;

/// A list of files, and an index of weights where the list has one.
pub fn listing(bytes: &[u8]) -> bool {
    let mut parts = bytes.splitn(2, |byte| *byte == SEPARATOR);
    let (list, index) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(listing) = Listing::parse(list) else { return false };
    let printable = |text: &String| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    assert!(listing.licence.as_ref().is_none_or(printable));
    assert_eq!(listing.commit.as_str().len(), 40);
    let name: RepositoryName = "owner/name".parse().expect("a name");
    let Ok(needed) = Needed::of(&listing, &name) else { return false };
    let mut files: Vec<_> = needed.small().cloned().collect();
    match &needed.weights {
        Weights::Single(file) => files.push(file.clone()),
        Weights::Index(_) => match shards(index, &listing) {
            Ok(shards) => files.extend(shards),
            Err(_) => return false,
        },
    }
    for (at, file) in files.iter().enumerate() {
        // each becomes a file of the folder, and none of another place
        let parts: Vec<_> = std::path::Path::new(&file.name).components().collect();
        assert!(matches!(parts[..], [std::path::Component::Normal(_)]) && !file.name.starts_with('.'), "{}", file.name);
        assert!(listing.files.contains(file), "{} is not listed", file.name);
        assert!(files[..at].iter().all(|other| other.name != file.name), "{} is fetched twice", file.name);
    }
    true
}
