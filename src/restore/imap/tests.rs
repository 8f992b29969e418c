use super::*;
use crate::client::stream::Stream;
use crate::client::tls::Trust;
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::{MailboxHead, Record};
use crate::restore::imap::text::date;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// One message of the server: flags, date, body.
type Held = (String, String, Vec<u8>);

/// What the server has, and what it was told.
#[derive(Default)]
struct State {
    mailboxes: HashMap<String, Vec<Held>>,
    subscribed: Vec<String>,
    appends: usize,
    stored: Vec<String>,
    acl: Vec<String>,
}

/// A small server. It refuses messages with REFUSE, ones with a keyword `$no`, and goes at HANGUP.
struct Server {
    io: BufReader<UnixStream>,
    capabilities: String,
    state: Arc<Mutex<State>>,
    selected: String,
}

impl Server {
    fn say(&mut self, text: &str) {
        let _ = self.io.get_mut().write_all(text.as_bytes());
    }

    /// A line with its literals put in as `<N>` and kept.
    fn command(&mut self) -> Option<(String, Vec<Vec<u8>>)> {
        let (mut text, mut literals) = (String::new(), Vec::new());
        loop {
            let mut line = String::new();
            self.io.read_line(&mut line).ok().filter(|n| *n > 0)?;
            let line = line.trim_end();
            let open = line.rfind('{').filter(|_| line.ends_with('}'));
            let Some(open) = open else {
                text.push_str(line);
                return Some((text, literals));
            };
            let digits = line[open + 1..line.len() - 1].trim_end_matches('+');
            if !line.ends_with("+}") {
                if line[..open].contains("$no") {
                    let tag = line.split(' ').next().unwrap().to_owned();
                    self.say(&format!("{tag} NO no such keyword\r\n"));
                    text.clear();
                    literals.clear();
                    continue;
                }
                self.say("+ go\r\n");
            }
            let mut literal = vec![0; digits.parse().unwrap()];
            self.io.read_exact(&mut literal).ok()?;
            if literal.windows(6).any(|w| w == b"HANGUP") {
                return None;
            }
            text.push_str(&line[..open]);
            text.push_str(&format!("<{}>", literals.len()));
            literals.push(literal);
        }
    }

    fn run(mut self) {
        self.say("* OK hello\r\n");
        while let Some((text, literals)) = self.command() {
            let (tag, rest) = text.split_once(' ').unwrap();
            let answer = self.answer(rest, literals);
            self.say(&format!("{tag} {answer}\r\n"));
        }
    }

    fn answer(&mut self, rest: &str, literals: Vec<Vec<u8>>) -> String {
        let verb = rest.split(' ').next().unwrap();
        let name = rest.split('"').nth(1).unwrap_or_default().to_owned();
        let state = self.state.clone();
        let mut state = state.lock().unwrap();
        match verb {
            "CAPABILITY" => {
                let line = format!("* CAPABILITY IMAP4rev1 {}\r\n", self.capabilities);
                self.say(&line);
            }
            "SELECT" | "EXAMINE" => {
                let Some(list) = state.mailboxes.get(&name) else {
                    return "NO [NONEXISTENT] no such mailbox".into();
                };
                let line = format!(
                    "* {} EXISTS\r\n* OK [PERMANENTFLAGS (\\Seen \\Flagged $a $no)] x\r\n",
                    list.len()
                );
                self.say(&line);
                self.selected = name;
            }
            "CREATE" if name.contains("bad") => return "NO [CANNOT] never".into(),
            "CREATE" => drop(state.mailboxes.insert(name, Vec::new())),
            "LIST" => self.say("* LIST (\\Noselect) \".\" \"\"\r\n"),
            "LSUB" => {
                let lines = state
                    .subscribed
                    .iter()
                    .map(|n| format!("* LSUB () \".\" \"{n}\"\r\n"));
                let lines: String = lines.collect();
                self.say(&lines);
            }
            "SUBSCRIBE" => state.subscribed.push(name),
            "APPEND" => {
                state.appends += 1;
                if literals
                    .iter()
                    .any(|l| l.windows(6).any(|w| w == b"REFUSE"))
                {
                    return "NO [OVERQUOTA] it is too much".into();
                }
                if rest.contains("$no") {
                    return "NO no such keyword".into();
                }
                let parts: Vec<&str> = rest.split('(').skip(1).collect();
                for (part, body) in parts.iter().zip(literals) {
                    let (flags, behind) = part.split_once(')').unwrap();
                    let date = behind.split('"').nth(1).unwrap().to_owned();
                    let list = state.mailboxes.get_mut(&name).unwrap();
                    list.push((flags.to_owned(), date, body));
                }
            }
            "SETACL" => state.acl.push(rest.to_owned()),
            "UID" if rest.starts_with("UID STORE") => state.stored.push(rest.to_owned()),
            "UID" => {
                let mut lines = Vec::new();
                let list = &state.mailboxes[&self.selected];
                for (index, (flags, date, body)) in list.iter().enumerate() {
                    let uid = index + 1;
                    let set = rest.split(' ').nth(2).unwrap();
                    if set != "1:*" && !set.split(',').any(|n| n == uid.to_string()) {
                        continue;
                    }
                    let head = format!("* {uid} FETCH (UID {uid} ");
                    lines.extend_from_slice(head.as_bytes());
                    if rest.contains("RFC822.SIZE") {
                        let size = body.len();
                        let text =
                            format!("RFC822.SIZE {size} INTERNALDATE \"{date}\" FLAGS ({flags})");
                        lines.extend_from_slice(text.as_bytes());
                    } else if rest.contains("HEADER") {
                        let text = String::from_utf8_lossy(body);
                        let id = text.lines().find(|l| l.starts_with("Message-ID"));
                        let id = format!("{}\r\n\r\n", id.unwrap_or_default());
                        let text =
                            format!("BODY[HEADER.FIELDS (MESSAGE-ID)] {{{}}}\r\n{id}", id.len());
                        lines.extend_from_slice(text.as_bytes());
                    } else {
                        let from: usize =
                            rest.split(['<', '.', '>']).nth(2).unwrap().parse().unwrap();
                        let part = &body[from.min(body.len())..];
                        let part = &part[..part.len().min(256 * 1024)];
                        let text = format!("BODY[]<{from}> {{{}}}\r\n", part.len());
                        lines.extend_from_slice(text.as_bytes());
                        lines.extend_from_slice(part);
                    }
                    lines.extend_from_slice(b")\r\n");
                }
                let _ = self.io.get_mut().write_all(&lines);
            }
            _ => {}
        }
        "OK done".into()
    }
}

fn item(uid: u32, body: &str, flags: &[&str]) -> Item {
    Item {
        record: Record {
            uid,
            modseq: 1,
            last_updated: 1,
            flags: flags.iter().map(Value::text).collect(),
            expunged: false,
            internaldate: 1_000_000_000,
            size: body.len() as u64,
            guid: Guid::of(body.as_bytes()),
            annotations: Vec::new(),
            extra: Vec::new(),
        },
    }
}

fn folder(name: &str, items: Vec<Item>) -> Folder {
    Folder {
        from: name.into(),
        to: name.into(),
        head: MailboxHead { keys: Vec::new() },
        items,
        tombstones: Vec::new(),
        bodiless: 0,
        flags_only: false,
        only_there: false,
        keep_uids: false,
        partition: None,
        acl: None,
    }
}

struct Texts(HashMap<Guid, String>, bool);

impl Texts {
    fn of(texts: &[&str], with_ids: bool) -> Texts {
        let pair = |t: &&str| (Guid::of(t.as_bytes()), t.to_string());
        Texts(texts.iter().map(pair).collect(), with_ids)
    }
}

impl Bodies for Texts {
    fn body(&mut self, guid: Guid, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let text = self.0.get(&guid);
        let text = text.ok_or_else(|| Error::new(Kind::NotFound, "no body"))?;
        text.as_bytes().chunks(100_000).try_for_each(sink)
    }

    fn message_id(&mut self, guid: Guid) -> Result<Option<String>> {
        let text = self.0.get(&guid).filter(|_| self.1);
        let start = text.map(|t| crate::cyrus::header::Envelope::read(t.as_bytes()));
        Ok(start.and_then(|e| e.message_id))
    }
}

fn connect(capabilities: &str, state: &Arc<Mutex<State>>) -> Append {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Server {
        io: BufReader::new(theirs),
        capabilities: capabilities.into(),
        state: state.clone(),
        selected: String::new(),
    };
    std::thread::spawn(move || server.run());
    let login = Login {
        user: "anna".into(),
        password: b"x".to_vec(),
        allow_plaintext: true,
    };
    let imap = Imap::over(Stream::of_unix(ours), Some(&login), "").unwrap();
    let address = Address::Tcp("host".into(), 143);
    let ns = Namespace::default();
    let timeouts = Timeouts::default();
    let mut to = Append::new(
        "x".into(),
        &address,
        Some(imap),
        Some(&login),
        (&Trust::default(), timeouts),
        &ns,
    );
    let plan = Plan {
        userid: "anna".into(),
        ..Plan::default()
    };
    to.begin(&plan, false).unwrap();
    to
}

fn bring(to: &mut Append, f: &Folder, bodies: &mut Texts) -> (Done, Result<()>) {
    let mut done = Done::default();
    let result = to.folder(f, bodies, false, &mut done);
    (done, result)
}

const ALL: [&str; 4] = ["", "LITERAL+ UNSELECT", "LITERAL-", "LITERAL+ MULTIAPPEND"];

#[test]
fn brings_all_once_whatever_the_server_can() {
    let big = format!("Message-ID: <big>\r\n\r\n{}", "x".repeat(700_000));
    let texts = [
        "Message-ID: <1>\r\n\r\na",
        "Message-ID: <2>\r\n\r\nb",
        "Subject: none\r\n\r\nc",
        "Subject: none\r\n\r\nd",
        &big,
    ];
    for capabilities in ALL {
        for with_ids in [false, true] {
            let state = Arc::default();
            let mut to = connect(capabilities, &state);
            let mut items: Vec<Item> = (1..)
                .zip(&texts)
                .map(|(n, t)| item(n, t, &["$a"]))
                .collect();
            items.push(item(6, "lost", &[]));
            // Twice the same message is two messages.
            items.push(item(7, texts[0], &["\\seen", "$b"]));
            let f = folder("user.anna.A^b.c", items);
            let mut bodies = Texts::of(&texts, with_ids);
            let (done, result) = bring(&mut to, &f, &mut bodies);
            result.unwrap();
            assert_eq!((done.brought, done.made), (6, true), "{capabilities}");
            assert_eq!(done.failed, [(6, "no body".to_owned())]);
            assert_eq!(done.notes, ["the server does not keep $b"]);
            {
                let state = state.lock().unwrap();
                let held = &state.mailboxes["A^b.c"];
                assert_eq!(held[0].0, "$a");
                assert_eq!(Some(&held[0].1), date(1_000_000_000).as_ref());
                assert_eq!(held[5].0, "\\Seen");
                let bodies: Vec<&[u8]> = held.iter().map(|h| &h.2[..]).collect();
                assert_eq!(bodies[..5], texts.map(str::as_bytes), "{capabilities}");
            }
            let mut again = connect(capabilities, &state);
            let (done, result) = bring(&mut again, &f, &mut bodies);
            result.unwrap();
            assert_eq!((done.brought, done.there), (0, 6), "{capabilities}");
        }
    }
}

#[test]
fn what_is_refused_is_told_and_the_rest_is_there() {
    let texts = ["a", "REFUSE", "c", "d"];
    for capabilities in ALL {
        let state = Arc::default();
        let mut to = connect(capabilities, &state);
        let mut items: Vec<Item> = (1..).zip(&texts).map(|(n, t)| item(n, t, &[])).collect();
        // This one is taken without its keyword.
        items[3] = item(4, "d", &["$no", "\\Flagged"]);
        let f = folder("user.anna", items);
        state
            .lock()
            .unwrap()
            .mailboxes
            .insert("INBOX".into(), Vec::new());
        let mut bodies = Texts::of(&texts, false);
        let (done, result) = bring(&mut to, &f, &mut bodies);
        result.unwrap();
        assert_eq!(done.brought, 3, "{capabilities}");
        let why = "NO [OVERQUOTA] it is too much".to_owned();
        assert_eq!(done.failed, [(2, why)], "{capabilities}");
        let state = state.lock().unwrap();
        let mut held: Vec<&[u8]> = state.mailboxes["INBOX"].iter().map(|h| &h.2[..]).collect();
        held.sort();
        assert_eq!(held, [b"a", b"c", b"d"], "{capabilities}");
        let last = state.mailboxes["INBOX"].iter().find(|h| h.2 == b"d");
        assert_eq!(last.unwrap().0, "\\Flagged");
    }
}

#[test]
fn a_lost_connection_ends_the_run_and_the_next_completes() {
    for capabilities in ALL {
        let state = Arc::default();
        let mut to = connect(capabilities, &state);
        let items = vec![item(1, "a", &[]), item(2, "HANGUP", &[]), item(3, "c", &[])];
        let mut f = folder("user.anna.x", items);
        let mut bodies = Texts::of(&["a", "HANGUP", "c"], false);
        let (_, result) = bring(&mut to, &f, &mut bodies);
        assert_eq!(result.unwrap_err().kind(), Kind::Io, "{capabilities}");
        f.items.remove(1);
        let (done, result) = bring(&mut connect(capabilities, &state), &f, &mut bodies);
        result.unwrap();
        assert_eq!(done.brought + done.there, 2, "{capabilities}");
        assert_eq!(state.lock().unwrap().mailboxes["x"].len(), 2);
    }
}

#[test]
fn flags_alone() {
    let state: Arc<Mutex<State>> = Arc::default();
    let mut to = connect("LITERAL+", &state);
    let texts = ["Message-ID: <1>\r\n", "Message-ID: <2>\r\n", "new"];
    let mut bodies = Texts::of(&texts, true);
    let before = vec![
        item(1, texts[0], &["\\Seen"]),
        item(2, texts[1], &["\\Seen"]),
    ];
    let (_, result) = bring(&mut to, &folder("user.anna.x", before), &mut bodies);
    result.unwrap();
    let wanted = vec![
        item(1, texts[0], &["\\Flagged", "$a", "$b"]),
        item(2, texts[1], &["\\SEEN"]),
        item(9, texts[2], &["\\Seen"]),
    ];
    let mut f = folder("user.anna.x", wanted);
    f.flags_only = true;
    let (done, result) = bring(&mut to, &f, &mut bodies);
    result.unwrap();
    assert_eq!((done.there, done.flagged, done.brought), (2, 1, 0));
    assert_eq!(done.notes, ["the server does not keep $b"]);
    let stored = state.lock().unwrap().stored.clone();
    assert_eq!(stored, ["UID STORE 1 FLAGS.SILENT ($a \\Flagged)"]);
    f.to = "user.anna.none".into();
    let (done, result) = bring(&mut to, &f, &mut bodies);
    result.unwrap();
    assert_eq!((done.failed.len(), done.notes.len()), (0, 1));
}

#[test]
fn mailboxes_that_cannot_be_had() {
    let state: Arc<Mutex<State>> = Arc::default();
    let mut to = connect("", &state);
    for (name, why) in [
        ("user.anna.bad", "[CANNOT] never"),
        ("user.bert", "is bert's"),
        ("shared.x", "no shared mailboxes"),
    ] {
        let f = folder(name, vec![item(1, "a", &[])]);
        let (done, result) = bring(&mut to, &f, &mut Texts::of(&["a"], false));
        result.unwrap();
        assert_eq!(done.failed.len(), 1);
        assert!(done.failed[0].1.contains(why), "{done:?}");
    }
    let mut f = folder("user.anna.x", Vec::new());
    f.keep_uids = true;
    let (_, result) = bring(&mut to, &f, &mut Texts::of(&[], false));
    assert_eq!(result.unwrap_err().kind(), Kind::Usage);
}

#[test]
fn rights_of_others() {
    for (capabilities, notes) in [("ACL", 0), ("", 1)] {
        let state: Arc<Mutex<State>> = Arc::default();
        let mut to = connect(capabilities, &state);
        let mut f = folder("user.anna.x", Vec::new());
        f.acl = Some("anna\tlrswipkxtecdan\tbert\tlr\tanyone\tp\t".into());
        let (done, result) = bring(&mut to, &f, &mut Texts::of(&[], false));
        result.unwrap();
        assert_eq!(done.notes.len(), notes, "{:?}", done.notes);
        // It is there by now, and keeps what it has.
        bring(&mut to, &f, &mut Texts::of(&[], false)).1.unwrap();
        let told = [
            "SETACL \"x\" \"bert\" \"lr\"",
            "SETACL \"x\" \"anyone\" \"p\"",
        ];
        assert_eq!(state.lock().unwrap().acl, told[..2 * (1 - notes)]);
    }
}

#[test]
fn subscriptions() {
    let state: Arc<Mutex<State>> = Arc::default();
    let mut to = connect("", &state);
    let plan = Plan {
        userid: "anna".into(),
        subscriptions: vec!["user.anna.x".into(), "user.bert.y".into()],
        active_script: Some("x.bc".into()),
        ..Plan::default()
    };
    for (dry_run, became) in [
        (true, Became::Brought),
        (false, Became::Brought),
        (false, Became::There),
        (true, Became::There),
    ] {
        let mut told = Vec::new();
        to.user(&plan, dry_run, &mut told).unwrap();
        let told: Vec<_> = told.iter().map(|o| (o.name.as_str(), o.became)).collect();
        assert_eq!(
            told,
            [("user.anna.x", became), ("user.bert.y", Became::Failed)]
        );
    }
    assert_eq!(state.lock().unwrap().subscribed, ["x"]);
    to.finish().unwrap();
}
