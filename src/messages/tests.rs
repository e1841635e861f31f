//! What a timeline shows, and what is forgotten when.

use super::*;

const START: u64 = 1_800_000_000_123;
const KEEP: Duration = Duration::from_secs(3600);

fn at(after: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(START + after)
}

fn timelines(max: usize) -> Timelines {
    Timelines::started_at(Messages { max, keep: KEEP }, at(0))
}

/// A UUIDv7 of that many milliseconds after the start.
fn id(after: i64) -> Uuid {
    let mut bytes = fastrand::u128(..).to_be_bytes();
    bytes[..6].copy_from_slice(&START.strict_add_signed(after).to_be_bytes()[2..]);
    uuid::Builder::from_bytes(bytes)
        .with_version(uuid::Version::SortRand)
        .with_variant(uuid::Variant::RFC4122)
        .into_uuid()
}

fn known(timelines: &Timelines, id: Uuid) -> Timeline {
    match timelines.get_at(id, at(1)) {
        Lookup::Known(timeline) => timeline,
        other => panic!("{id} is {other:?}"),
    }
}

#[test]
fn a_timeline_is_shown_as_its_document() {
    let timelines = timelines(10);
    let id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
    timelines.record(id, Event::at(at(0), What::Accepted));
    timelines.record(id, Event::at(at(7), What::Replicated).place(3, 42));
    timelines.record(
        id,
        Event::at(at(20), What::Delivered).attempt(1).status(503),
    );
    timelines.record(id, Event::at(at(1020), What::Done).attempt(2).status(200));
    let json = serde_json::to_string(&known(&timelines, id)).unwrap();
    assert_eq!(
        json,
        concat!(
            r#"{"id":"01900000-0000-7000-8000-000000000001","status":"done","events":["#,
            r#"{"at":"2027-01-15T08:00:00.123Z","what":"accepted"},"#,
            r#"{"at":"2027-01-15T08:00:00.130Z","what":"replicated","partition":3,"offset":42},"#,
            r#"{"at":"2027-01-15T08:00:00.143Z","what":"delivered","status":503,"attempt":1},"#,
            r#"{"at":"2027-01-15T08:00:01.143Z","what":"done","status":200,"attempt":2}],"#,
            r#""result":{"status":200}}"#
        )
    );
}

#[test]
fn how_a_message_began_stands_first_also_if_it_is_told_last() {
    let timelines = timelines(10);
    let id = id(0);
    timelines.record(id, Event::at(at(500), What::Replicated).place(3, 42));
    timelines.record(id, Event::at(at(600), What::Done).status(200));
    timelines.record(id, Event::at(at(100), What::Accepted));
    let timeline = known(&timelines, id);
    assert_eq!(timeline.status, Status::Done);
    let told: Vec<_> = timeline
        .events
        .iter()
        .map(|event| (event.what, event.at))
        .collect();
    let wanted = [
        (What::Accepted, 100),
        (What::Replicated, 500),
        (What::Done, 600),
    ];
    assert_eq!(told, wanted.map(|(what, after)| (what, at(after))));
    assert_eq!(timeline.events[1].place, Some((3, 42)));
}

#[test]
fn the_status_only_goes_on() {
    let rows: [(&[What], Status); 7] = [
        (&[What::Accepted], Status::Accepted),
        (&[What::Accepted, What::Unacknowledged], Status::Accepted),
        (
            &[What::Accepted, What::Delivered, What::Replicated],
            Status::Delivered,
        ),
        (&[What::Spooled, What::Accepted], Status::Spooled),
        (
            &[What::Delivered, What::Done, What::Delivered, What::NotSent],
            Status::Done,
        ),
        (&[What::Dead, What::Done], Status::Done),
        (&[What::Dropped], Status::Dropped),
    ];
    for (events, expected) in rows {
        let timelines = timelines(10);
        let id = id(0);
        events
            .iter()
            .for_each(|what| timelines.record(id, Event::at(at(0), *what)));
        assert_eq!(known(&timelines, id).status, expected, "{events:?}");
    }
}

#[test]
fn every_event_comes_back_as_it_was_recorded() {
    for what in What::ALL {
        let timelines = timelines(10);
        let (id, event) = (
            id(0),
            Event::at(at(0), *what)
                .place(0, i64::MAX)
                .status(599)
                .attempt(7),
        );
        timelines.record(id, event);
        assert_eq!(known(&timelines, id).events, [event]);
    }
    let mut words: Vec<_> = What::ALL.iter().map(|what| what.word()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), What::ALL.len());
}

#[test]
fn of_many_events_the_first_and_the_last_are_kept() {
    let timelines = timelines(10);
    let id = id(0);
    for attempt in 1..=100_u32 {
        timelines.record(
            id,
            Event::at(at(u64::from(attempt)), What::Delivered).attempt(attempt),
        );
    }
    let timeline = known(&timelines, id);
    let attempts: Vec<_> = timeline
        .events
        .iter()
        .filter_map(|event| event.attempt)
        .collect();
    assert_eq!(attempts, [1, 2, 3, 95, 96, 97, 98, 99, 100]);
    assert_eq!(timeline.skipped, 91);
    timelines.record(id, Event::at(at(200), What::Delivered).attempt(70_000));
    let last = known(&timelines, id)
        .events
        .last()
        .copied()
        .and_then(|event| event.attempt);
    assert_eq!(last, Some(65_535));
}

#[test]
fn the_oldest_timeline_is_overwritten_and_then_gone() {
    let timelines = timelines(3);
    let ids: Vec<_> = (0..5).map(|n| id(n * 10)).collect();
    for (n, id) in ids.iter().enumerate() {
        timelines.record(*id, Event::at(at(n as u64 * 10), What::Accepted));
    }
    assert_eq!(timelines.len(), 3);
    let look = |id: Uuid| timelines.get_at(id, at(100));
    assert_eq!([look(ids[0]), look(ids[1])], [Lookup::Gone, Lookup::Gone]);
    assert!(
        ids[2..]
            .iter()
            .all(|id| matches!(look(*id), Lookup::Known(_)))
    );
    let recent: Vec<_> = timelines
        .recent_at(&Wanted::default(), 2, at(100))
        .iter()
        .map(|timeline| timeline.id)
        .collect();
    assert_eq!(recent, [ids[4], ids[3]]);
    let all = timelines.recent_at(&Wanted::default(), 9, at(100));
    assert_eq!(all.len(), 3);
    let later = at(0) + KEEP * 2;
    assert!(timelines.recent_at(&Wanted::default(), 9, later).is_empty());
}

#[test]
fn messages_are_found_by_route_and_status() {
    let timelines = timelines(10);
    let route = |name| timelines.origin(Some(name), "invoices");
    let routes = [route("create"), route("create"), route("change")];
    for (n, origin) in (0..).zip(routes) {
        timelines.record(
            id(n),
            Event::at(at(n as u64), What::Accepted).origin(origin),
        );
    }
    // What comes later from a subscription beside the route tells nothing of one, and does not hide it.
    let done = id(3);
    timelines.record(
        done,
        Event::at(at(3), What::Accepted).origin(route("create")),
    );
    let here = timelines.origin(None, "elsewhere");
    timelines.record(done, Event::at(at(4), What::Done).origin(here));
    let find = |route: Option<&str>, status| {
        let wanted = Wanted {
            route: route.map(str::to_owned),
            status,
        };
        let found = timelines.recent_at(&wanted, 9, at(10));
        assert!(found.iter().all(|timeline| wanted.takes(timeline)));
        found.len()
    };
    assert_eq!(find(None, None), 4);
    assert_eq!(find(Some("create"), None), 3);
    assert_eq!(find(Some("change"), None), 1);
    assert_eq!(find(Some("other"), None), 0);
    assert_eq!(find(Some("create"), Some(Status::Done)), 1);
    assert_eq!(find(None, Some(Status::Accepted)), 3);
    let timeline = known(&timelines, done);
    assert_eq!(timeline.route.as_deref(), Some("create"));
    assert_eq!(timeline.topic.as_deref(), Some("invoices"));
    let json = timeline.to_json();
    assert_eq!(
        (&json["route"], &json["topic"]),
        (&"create".into(), &"invoices".into())
    );
}

#[test]
fn an_unknown_id_is_told_from_a_forgotten_one_by_its_own_time() {
    let timelines = timelines(10);
    assert_eq!(timelines.get_at(id(50), at(100)), Lookup::Unknown);
    assert_eq!(
        timelines.get_at(id(-50), at(100)),
        Lookup::Gone,
        "from before the process"
    );
    let later = at(0) + KEEP + Duration::from_secs(1);
    assert_eq!(timelines.get_at(id(50), later), Lookup::Gone, "too old");
    assert_eq!(
        timelines.get_at(Uuid::new_v8([7; 16]), later),
        Lookup::Unknown,
        "it says no time"
    );
    assert_eq!(timelines.get_at(Uuid::nil(), later), Lookup::Unknown);
}

#[test]
fn a_timeline_is_gone_some_time_after_its_last_event() {
    let timelines = timelines(10);
    let id = Uuid::new_v8([9; 16]);
    timelines.record(id, Event::at(at(0), What::Accepted));
    timelines.record(id, Event::at(at(5_000), What::Replicated));
    let end = at(5_000) + KEEP;
    assert!(matches!(timelines.get_at(id, end), Lookup::Known(_)));
    assert_eq!(
        timelines.get_at(id, end + Duration::from_millis(1)),
        Lookup::Gone
    );
}

#[test]
fn what_is_told_aside_changes_nothing() {
    let timelines = timelines(10);
    let id = id(0);
    timelines.record(id, Event::at(at(0), What::Replicated));
    timelines.record(id, Event::at(at(1), What::Dead).status(422).aside(true));
    let timeline = known(&timelines, id);
    assert_eq!(
        (timeline.status, timeline.result),
        (Status::Replicated, None)
    );
    timelines.record(id, Event::at(at(2), What::Done).status(200));
    timelines.record(id, Event::at(at(3), What::Done).status(201).aside(true));
    let timeline = known(&timelines, id);
    assert_eq!(
        (timeline.status, timeline.result),
        (Status::Done, Some(200))
    );
    assert_eq!(timeline.events.len(), 4);
}

#[test]
fn a_receipt_begins_only_the_timeline_of_a_message_that_would_still_be_kept() {
    let timelines = timelines(10);
    let now = at(10_000);
    let keep = KEEP.as_millis() as i64;
    let done = Event::at(at(9_000), What::Done).status(200);
    for (made, taken) in [(-5_000, true), (10_001, false), (9_999 - keep, false)] {
        let id = id(made);
        assert_eq!(timelines.record_receipt_at(id, done, now), taken, "{made}");
        let known = matches!(timelines.get_at(id, now), Lookup::Known(_));
        assert_eq!(known, taken, "{made}");
    }
    let keyed = Uuid::new_v8([7; 16]);
    let old = Event {
        at: at(0) - KEEP,
        ..done
    };
    assert!(!timelines.record_receipt_at(keyed, old, now));
    assert!(timelines.record_receipt_at(keyed, done, now));
    assert!(
        timelines.record_receipt_at(keyed, old, now),
        "it is known now"
    );
}

#[test]
fn memory_is_bounded_whatever_comes() {
    for max in [0, 1, 5000] {
        let timelines = timelines(max);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..5_000).for_each(|n| {
                        timelines.record(id(n), Event::at(at(n as u64), What::Accepted))
                    })
                });
            }
        });
        assert!(timelines.len() <= max, "{} of {max}", timelines.len());
        assert!(
            timelines.len() >= max * 9 / 10,
            "{} of {max}",
            timelines.len()
        );
        for shard in &timelines.shards {
            let shard = lock(shard);
            assert_eq!(shard.index.len(), shard.ring.len());
            for (place, slot) in shard.ring.iter().enumerate() {
                assert_eq!(shard.find(slot.id()), Some(place));
            }
        }
    }
}
