//! A store that may let the oldest bodies go.

use super::*;

#[tokio::test]
async fn a_full_store_that_may_evict_lets_the_oldest_go_and_says_so() {
    let folder = folder();
    let (store, mut place) = config(&folder, 1 << 20);
    place.full = WhenFull::Evict;
    let open = || Disk::open(&store, &place, "orders").expect("the store opens");
    let disk = open();
    let mut claims = Vec::new();
    for n in 0..40_u8 {
        claims.push(keep(&disk, vec![n; 50 << 10]).await.unwrap());
        assert!(disk.used() <= place.max, "{} bytes after {n}", disk.used());
    }
    let there = async |disk: &Disk| {
        let mut there = Vec::new();
        for (n, claim) in claims.iter().enumerate() {
            match disk.fetch(&claim.id).await {
                Ok(body) => {
                    assert_eq!(body, vec![n as u8; 50 << 10]);
                    there.push(n);
                }
                Err(error) => assert_eq!(error.kind(), Kind::Expired, "{n}: {error}"),
            }
        }
        there
    };
    let left = there(&disk).await;
    assert!((15..=20).contains(&left.len()), "{left:?}");
    let newest: Vec<usize> = (40 - left.len()..40).collect();
    assert_eq!(left, newest, "the oldest went");
    assert!(disk.evicted() >= (20 * 50) << 10, "{}", disk.evicted());
    // What does not fit at all pushes nothing out.
    assert_eq!(kind(keep(&disk, vec![0; 2 << 20]).await), Kind::ClaimStore);
    assert_eq!(there(&disk).await, left);
    // Another process still tells those that went from those that were lost.
    drop(disk);
    assert_eq!(there(&open()).await, left);
}

#[tokio::test]
async fn a_body_that_comes_faster_than_it_is_evicted_for_waits_for_room() {
    const LARGE: usize = 70 << 20;
    let folder = folder();
    let (store, mut place) = config(&folder, 80 << 20);
    place.full = WhenFull::Evict;
    let disk = Disk::open(&store, &place, "orders").expect("the store opens");
    // The second is over what may wait beside a full store.
    for n in 0..2 {
        keep(&disk, vec![n; LARGE]).await.unwrap();
    }
    let part = vec![7; 1 << 20];
    let mut digest = Sha256::new();
    let mut upload = disk.begin().await.unwrap();
    for _ in 0..70 {
        upload.write(&part).await.unwrap();
        digest.update(&part);
    }
    let claim = upload.finish(digest.finalize().into(), *b"for whom").await;
    let body = disk.fetch(&claim.unwrap().id).await.unwrap();
    assert!(body.len() == LARGE && body.iter().all(|byte| *byte == 7));
    // The next one goes as soon as the writer looks.
    assert!(disk.evicted() >= LARGE as u64, "{}", disk.evicted());
}
