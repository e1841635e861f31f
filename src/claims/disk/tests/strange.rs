//! Folders in which there is what no store of ours has put there.

use super::*;

#[tokio::test]
async fn what_only_has_the_name_of_a_segment_keeps_no_store_from_opening() {
    let folder = folder();
    let bodies = folder.path().join("bodies");
    fs::create_dir_all(bodies.join("0000000000000001.claims")).unwrap();
    std::os::unix::fs::symlink("nowhere", bodies.join("0000000000000002.claims")).unwrap();
    let script = Script::new();
    let store = script.open(&folder);
    assert_eq!(store.used(), 0);
    keep(&store, "kept").await.unwrap();
    drop(store);
    script.advance(TTL * 3);
    drop(script.open(&folder));
    assert!(
        bodies.join("0000000000000001.claims").is_dir(),
        "not ours to delete"
    );
}

#[tokio::test]
async fn a_segment_with_the_highest_number_of_all_does_not_end_the_counting() {
    let folder = folder();
    fs::create_dir_all(folder.path().join("bodies")).unwrap();
    fs::write(folder.path().join("bodies/ffffffffffffffff.claims"), "").unwrap();
    let store = open(&folder);
    let claim = keep(&store, "kept").await.unwrap();
    assert_eq!(store.fetch(&claim.id).await.unwrap(), "kept");
}

#[test]
fn a_segment_that_cannot_be_read_is_named_in_the_error() {
    let error = segment::Sealed::look(Path::new("/nowhere/0000000000000001.claims"), 1, TTL);
    let error = error.expect_err("it is not there");
    assert!(
        error
            .to_string()
            .starts_with("/nowhere/0000000000000001.claims: "),
        "{error}"
    );
}
