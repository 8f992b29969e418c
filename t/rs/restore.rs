//! `restore` without a destination: what it chooses, where that goes, what it does not understand.

use crate::looking::{NOW, ONE, SETTINGS, Store, TWO};
use cyr_backup::cyrus::dlist::Value as Dlist;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::mboxname::Namespace;
use cyr_backup::restore::Bodies;
use cyr_backup::restore::bodies::FromBackup;
use cyr_backup::restore::choose::{Into, Wanted, What, Which, choose};
use cyr_backup::store::backup::Backup;
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::past;
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::util::time::Timestamp;
use serde_json::Value;
use std::collections::HashMap;

/// (where from, where to, messages) of a dry run.
fn plan(store: &Store, words: &[&str]) -> Vec<(String, String, u64)> {
    let mut all = vec!["restore", "-n", "-j"];
    all.extend(words);
    let value = store.json(&all);
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let users = value["users"].as_array().unwrap();
    users
        .iter()
        .flat_map(|u| u["mailboxes"].as_array().unwrap())
        .map(|m| {
            let n = m["brought"].as_u64().unwrap();
            (text(&m["mboxname"]), text(&m["to"]), n)
        })
        .collect()
}

fn rows(expect: &[(&str, &str, u64)]) -> Vec<(String, String, u64)> {
    let row = |(a, b, n): &(&str, &str, u64)| ((*a).into(), (*b).into(), *n);
    expect.iter().map(row).collect()
}

#[test]
fn what_is_chosen_and_where_it_goes() {
    let store = Store::new("restore-choose");
    let one = Guid::of(ONE).to_string();
    let two = Guid::of(TWO).to_string();
    let here = "user.anna";
    for (words, expect) in [
        // What lives, in place.
        (
            &["--in-place", "anna"][..],
            &[(here, here, 2), ("user.anna.Sent", "user.anna.Sent", 1)][..],
        ),
        // To another user, into a tree, into one mailbox.
        (
            &["--in-place", "--as", "b.c@x.example", "anna", "INBOX"],
            &[(here, "x.example!user.b^c", 2)],
        ),
        (
            &["--prefix", "back/v1.0", "anna"],
            &[
                (here, "user.anna.back.v1^0.INBOX", 2),
                ("user.anna.Sent", "user.anna.back.v1^0.Sent", 1),
            ],
        ),
        (
            &["--into", "user/anna/x", "anna", "Sent"],
            &[("user.anna.Sent", "user.anna.x", 1)],
        ),
        (
            &["--into", "user/anna/x", "anna", "u-sent"],
            &[("user.anna.Sent", "user.anna.x", 1)],
        ),
        // A name alone is the user's own.
        (
            &["--into", "x.y/z", "anna", "Sent"],
            &[("user.anna.Sent", "user.anna.x^y.z", 1)],
        ),
        (
            &["--into", "INBOX", "--as", "bert", "anna", "Sent"],
            &[("user.anna.Sent", "user.bert", 1)],
        ),
        (
            &["--into", "/shared", "anna", "Sent"],
            &[("user.anna.Sent", "shared", 1)],
        ),
        // What was deleted: a message of INBOX and a mailbox, which holds what lives elsewhere.
        (
            &["--in-place", "--deleted-only", "anna"],
            &[(here, here, 1), ("user.anna.Old", "user.anna.Old", 1)],
        ),
        (
            &[
                "--in-place",
                "--deleted-only",
                "--until",
                "2020-01-01",
                "anna",
            ],
            &[],
        ),
        // A mailbox that is gone, if it is named.
        (
            &["--in-place", "anna", "user/anna/Old"],
            &[("user.anna.Old", "user.anna.Old", 1)],
        ),
        // Everything that ever was.
        (
            &["--in-place", "--ignore-deletes", "-r", "anna", "INBOX"],
            &[
                (here, here, 3),
                ("user.anna.Old", "user.anna.Old", 1),
                ("user.anna.Sent", "user.anna.Sent", 1),
            ],
        ),
        // A message, wherever it was, and one mailbox besides.
        (
            &["--in-place", "anna", &one],
            &[
                (here, here, 1),
                ("user.anna.Old", "user.anna.Old", 1),
                ("user.anna.Sent", "user.anna.Sent", 1),
            ],
        ),
        (
            &["--in-place", "anna", "INBOX", &one],
            &[
                (here, here, 2),
                ("user.anna.Old", "user.anna.Old", 1),
                ("user.anna.Sent", "user.anna.Sent", 1),
            ],
        ),
        (
            &["--in-place", "anna", "Sent", &two],
            &[(here, here, 1), ("user.anna.Sent", "user.anna.Sent", 1)],
        ),
        // Files keep the names.
        (
            &["--since", "2000-01-01", "anna", "INBOX", "-q", "--in-place"],
            &[(here, here, 2)],
        ),
    ] {
        assert_eq!(plan(&store, words), rows(expect), "{words:?}");
    }
    // Nobody is gone who never had a mailbox.
    let own = store.json(&["restore", "-n", "-j", "--in-place", "carl@x.example"]);
    assert_eq!(own["users"][0]["notes"].as_array().unwrap().len(), 0);
    let today = plan(&store, &["anna", "Sent"]);
    assert!(today[0].1.starts_with("user.anna.RESTORED.20"), "{today:?}");
    assert!(today[0].1.ends_with(".Sent"), "{today:?}");
    assert_eq!(plan(&store, &["-A"]).len(), 2);
}

#[test]
fn the_result_of_a_search_is_what_it_found_where_it_found_it() {
    let store = Store::new("restore-rows");
    let list = store.0.join("list");
    let of = |list: &std::path::Path| list.to_str().unwrap().to_owned();
    for (words, expect) in [
        (
            &["search", "-j", "anna", "--mailbox", "Sent"][..],
            &[("user.anna.Sent", "user.anna.Sent", 1)][..],
        ),
        (
            &[
                "search",
                "-j",
                "anna",
                "--deleted-only",
                "--mailbox",
                "INBOX",
            ],
            &[("user.anna", "user.anna", 1)],
        ),
        (
            &["messages", "-j", "anna", "INBOX"],
            &[("user.anna", "user.anna", 2)],
        ),
        (&["search", "-j", "anna", "--subject", "nowhere"], &[]),
    ] {
        std::fs::write(&list, store.text(words)).unwrap();
        let got = plan(&store, &["--in-place", "--guids", &of(&list), "anna"]);
        assert_eq!(got, rows(expect), "{words:?}");
        // What was found with one user is not looked for with another.
        let all = plan(&store, &["-A", "--in-place", "--guids", &of(&list)]);
        assert_eq!(all, rows(expect), "{words:?}");
        let other = plan(
            &store,
            &["carl@x.example", "--in-place", "--guids", &of(&list)],
        );
        assert_eq!(other, [], "{words:?}");
    }
    // With a mailbox that is named, both.
    std::fs::write(
        &list,
        store.text(&["search", "-j", "anna", "--mailbox", "Sent"]),
    )
    .unwrap();
    let got = plan(
        &store,
        &["--in-place", "--guids", &of(&list), "anna", "Old"],
    );
    let expect = [
        ("user.anna.Old", "user.anna.Old", 1),
        ("user.anna.Sent", "user.anna.Sent", 1),
    ];
    assert_eq!(got, rows(&expect));
}

#[test]
fn the_tree_has_the_day_that_people_have() {
    let store = Store::new("restore-day");
    // A day and more apart.
    let [east, west] = ["Etc/GMT-14", "Etc/GMT+12"].map(|zone| {
        let mut command = store.command(&["restore", "-n", "anna", "Sent"]);
        let output = command.env("TZ", zone).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    assert!(east.contains("/RESTORED/20") && west.contains("/RESTORED/20"));
    assert_ne!(east, west);
}

#[test]
fn what_does_not_go_together_is_usage() {
    let store = Store::new("restore-usage");
    for words in [
        &["restore", "anna"][..],
        &["restore", "--to", "host", "anna"],
        &["restore", "-n"],
        &[
            "restore",
            "-n",
            "--deleted-only",
            "--ignore-deletes",
            "anna",
        ],
        &["restore", "-n", "--in-place", "--prefix", "x", "anna"],
        &["restore", "-n", "-A", "--as", "bert"],
        &["restore", "-n", "-A", "--into", "user/x"],
        &["restore", "-n", "--keep-uids", "--as", "bert", "anna"],
        &["restore", "-n", "--keep-uids", "--since", "today", "anna"],
        &["restore", "-n", "--keep-uids", "--to", "mbox:x", "anna"],
        &["restore", "-n", "--flags-only", "--deleted-only", "anna"],
        &["restore", "-n", "--what", "mails", "anna"],
        &["restore", "-n", "--acl", "anna", "anna"],
        &["restore", "-n", "--jobs", "0", "anna"],
        &["restore", "-n", "--prefix", "a//b", "anna"],
        &["restore", "-n", "--into", "user", "anna"],
        &["restore", "-n", "--as", "", "anna"],
        &["restore", "-n", "--into", "DELETED/user/x/5F3A1B2C", "anna"],
        &["restore", "-n", "--into", "INBOX", "%SHARED//news"],
        &["restore", "-n", "--all-users", "anna"],
        &["restore", "-n", "--all-users", "-A"],
    ] {
        let ran = store.run(words);
        assert_eq!(ran.status, 64, "{words:?}: {}", ran.err);
    }
    for words in [
        &["restore", "-n", "nobody"][..],
        &["restore", "-n", "anna", "Nowhere"],
    ] {
        let ran = store.run(words);
        assert_eq!(ran.status, 1, "{words:?}: {}", ran.err);
    }
    let ran = store.run(&["restore", "-n", "anna", &"0".repeat(40)]);
    assert_eq!(ran.status, 1);
    assert!(String::from_utf8_lossy(&ran.out).contains("not in this backup"));
}

#[test]
fn a_plan_has_everything_of_the_user() {
    let store = Store::new("restore-plan");
    let reader = Reader::open(&store.path("anna"), Stale::Refuse).unwrap();
    let wanted = Wanted {
        mailboxes: Vec::new(),
        recursive: false,
        guids: None,
        rows: HashMap::new(),
        which: Which::Alive,
        which_named: Which::Ever,
        revive: true,
        since: None,
        until: None,
        what: What::ALL,
        flags_only: false,
        keep_uids: true,
        newest_first: true,
        into: Into::Place,
        user: None,
        partition: None,
        acl: None,
    };
    let plan = choose(reader.index(), "anna", &wanted, &Namespace::default()).unwrap();
    assert_eq!((plan.userid.as_str(), plan.totals().0), ("anna", 3));
    assert_eq!(plan.subscriptions, ["user.anna"]);
    assert_eq!(plan.active_script.as_deref(), Some("main.bc"));
    assert_eq!(plan.scripts.len(), 1);
    assert_eq!(plan.seen[0].0, "u-inbox");
    assert_eq!(plan.quotas[0].0, "user.anna");
    let inbox = &plan.folders[0];
    assert_eq!(inbox.to, "user.anna");
    assert_eq!(inbox.acl.as_deref(), Some("anna\tlrswipkxtecda\t"));
    let dead: Vec<u32> = inbox.tombstones.iter().map(|r| r.uid).collect();
    assert_eq!(dead, [2]);
    // Another owner stands in the ACL; what is made anew has no special use.
    let other = Wanted {
        user: Some("bert".into()),
        keep_uids: false,
        ..wanted
    };
    let plan = choose(reader.index(), "anna", &other, &Namespace::default()).unwrap();
    assert_eq!(
        plan.folders[0].acl.as_deref(),
        Some("bert\tlrswipkxtecda\t")
    );
    assert_eq!(plan.subscriptions, ["user.bert"]);
    assert_eq!(plan.quotas[0].0, "user.bert");
    assert!(plan.folders[0].tombstones.is_empty());
}

#[test]
fn bodies_are_proven_before_they_are_handed_over() {
    let store = Store::new("restore-bodies");
    let reader = Reader::open(&store.path("anna"), Stale::Refuse).unwrap();
    let mut bodies = FromBackup::new(&reader);
    let guid = Guid::of(ONE);
    // The second time the chunk is kept.
    for _ in 0..3 {
        let mut got = Vec::new();
        let mut sink = |part: &[u8]| {
            got.extend_from_slice(part);
            Ok(())
        };
        bodies.body(guid, &mut sink).unwrap();
        assert_eq!(got, ONE);
    }
    let none = Guid([7; 20]);
    let mut sink = |_: &[u8]| panic!("there is nothing");
    assert!(bodies.body(none, &mut sink).is_err());
    let mut guids = [none, guid];
    bodies.order(&mut guids).unwrap();
    assert!(guids.contains(&none) && guids.contains(&guid));
}

/// A user who goes is taken apart piece by piece; what he had before is what comes back.
#[test]
fn a_user_who_is_gone_had_what_went_shortly_before_him() {
    // Seconds between the script and the INBOX, and what he had at his end.
    for (gap, scripts, active) in [(0, 1, true), (59, 1, true), (300, 0, false)] {
        let store = Store::new(&format!("restore-gone-{gap}"));
        let path = store.path("anna");
        let mut backup = Backup::open(&path, "anna", Wait::No, Create::No, SETTINGS).unwrap();
        let script = Dlist::kv([("FILENAME", Dlist::text("main.script"))]);
        let at = |secs| Timestamp(NOW.0 + 1000 + secs);
        let lines = [
            Line::new("UNSIEVE", &script),
            Line::private(
                "UNACTIVATE_SIEVE",
                Dlist::kv([("FILENAME", Dlist::text("main.bc"))]),
            ),
        ];
        backup.append(&lines, at(0)).unwrap();
        let line = Line::new("UNSUB", &Dlist::kv([("MBOXNAME", Dlist::text("other"))]));
        backup.append(&[line], at(gap / 2)).unwrap();
        let line = Line::new("UNMAILBOX", &Dlist::text("user.anna"));
        backup.append(&[line], at(gap)).unwrap();
        let line = Line::private("UNUSER", Dlist::text("user.anna"));
        backup.append(&[line], at(gap + 1)).unwrap();
        backup.finish().unwrap();
        let reader = Reader::open(&store.path("anna"), Stale::Refuse).unwrap();
        let index = reader.index();
        assert!(index.scripts(false).unwrap().is_empty() && index.quotas().unwrap().is_empty());
        let past = past::alive(&reader, "user.anna", None, &store.0)
            .unwrap()
            .unwrap();
        let index = past.index();
        assert_eq!(index.scripts(false).unwrap().len(), scripts, "{gap}");
        assert_eq!(index.active_script().unwrap().is_some(), active, "{gap}");
        assert_eq!(index.quotas().unwrap().len(), 1);
        assert_eq!(index.seen_states().unwrap().len(), 1);
        assert_eq!(index.subscriptions(false).unwrap().len(), 1);
        // Not later than asked for, and not without an INBOX.
        let before = past::alive(&reader, "user.anna", Some(NOW), &store.0).unwrap();
        assert_eq!(before.unwrap().index().scripts(false).unwrap().len(), 1);
        assert!(
            past::alive(&reader, "user.bert", None, &store.0)
                .unwrap()
                .is_none()
        );
    }
}
