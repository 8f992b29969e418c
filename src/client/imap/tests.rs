use super::*;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// A server that greets and then answers each line that begins with the first word of a pair; what
/// it heard. An empty answer is silence.
fn server(greeting: &str, script: &[(&str, &str)]) -> (Stream, JoinHandle<Vec<String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let greeting = greeting.to_owned();
    let script: Vec<(String, String)> = script
        .iter()
        .map(|(a, b)| (a.to_string(), b.to_string()))
        .collect();
    let thread = std::thread::spawn(move || {
        (&theirs).write_all(greeting.as_bytes()).unwrap();
        let mut heard = Vec::new();
        let mut lines = BufReader::new(&theirs).lines();
        for (wanted, says) in script {
            let Some(Ok(line)) = lines.next() else { break };
            assert!(line.contains(&wanted), "{line} instead of {wanted}");
            heard.push(line);
            (&theirs).write_all(says.as_bytes()).unwrap();
        }
        heard
    });
    (Stream::of_unix(ours), thread)
}

fn login() -> Login {
    Login {
        user: "admin".into(),
        password: b"se\"cret".to_vec(),
        allow_plaintext: true,
    }
}

const HELLO: &str = "* OK [CAPABILITY IMAP4rev1] ready\r\n";

fn logged_in(capabilities: &str, more: &[(&str, &str)]) -> (Imap, JoinHandle<Vec<String>>) {
    let second = format!("* CAPABILITY {capabilities}\r\nA3 OK\r\n");
    let mut script = vec![
        ("A1 CAPABILITY", "* CAPABILITY IMAP4rev1\r\nA1 OK\r\n"),
        ("A2 LOGIN", "A2 OK in\r\n"),
        ("A3 CAPABILITY", second.as_str()),
    ];
    script.extend_from_slice(more);
    let (stream, thread) = server(HELLO, &script);
    let imap = Imap::over(stream, Some(&login()), "").unwrap();
    (imap, thread)
}

#[test]
fn logs_in_without_sasl_and_asks_again_what_is_offered() {
    let (imap, thread) = logged_in("IMAP4rev1 LITERAL+ UIDPLUS APPENDLIMIT=2000", &[]);
    assert!(imap.has("UIDPLUS") && !imap.has("AUTH=PLAIN"));
    assert_eq!(imap.append_limit(), Some(2000));
    assert!(imap.is_at_once(100_000) && !imap.is_at_once(2_000_000));
    drop(imap);
    assert_eq!(
        thread.join().unwrap()[1],
        "A2 LOGIN \"admin\" \"se\\\"cret\""
    );
}

#[test]
fn logs_in_for_another() {
    let script = [
        (
            "A1 CAPABILITY",
            "* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nA1 OK\r\n",
        ),
        ("L0 AUTHENTICATE PLAIN", "+ \r\n"),
        ("", "L0 OK in\r\n"),
        ("A2 CAPABILITY", "* CAPABILITY X\r\nA2 OK\r\n"),
    ];
    let (stream, thread) = server(HELLO, &script);
    let imap = Imap::over(stream, Some(&login()), "anna").unwrap();
    drop(imap);
    // anna NUL admin NUL se"cret
    assert_eq!(thread.join().unwrap()[2], "YW5uYQBhZG1pbgBzZSJjcmV0");
}

#[test]
fn refusals() {
    type Script<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, Script<'_>, Kind); 6] = [
        ("* BYE full\r\n", &[], Kind::Io),
        ("SSH-2.0\r\n", &[], Kind::Protocol),
        ("", &[], Kind::Io),
        (
            HELLO,
            &[
                ("A1", "* CAPABILITY IMAP4rev1\r\nA1 OK\r\n"),
                ("A2 LOGIN", "A2 NO [AUTHENTICATIONFAILED] no\r\n"),
            ],
            Kind::Denied,
        ),
        (
            HELLO,
            &[("A1", "* CAPABILITY LOGINDISABLED AUTH=GSSAPI\r\nA1 OK\r\n")],
            Kind::Config,
        ),
        (
            HELLO,
            &[("A1", "* CAPABILITY LOGINDISABLED STARTTLS\r\nA1 OK\r\n")],
            Kind::Config,
        ),
    ];
    for (greeting, script, kind) in cases {
        let (stream, thread) = server(greeting, script);
        let e = Imap::over(stream, Some(&login()), "").err().unwrap();
        assert_eq!(e.kind(), kind, "{e}");
        thread.join().unwrap();
    }
}

#[test]
fn literals_at_once_and_by_invitation() {
    let (mut imap, thread) = logged_in(
        "LITERAL-",
        &[
            ("A4 X {3+}", ""),
            ("abc", "* 1 EXISTS\r\nA4 OK [APPENDUID 1 2] done\r\n"),
            ("A5 X {5000}", "* 2 EXISTS\r\n+ go\r\n"),
            ("yyyyy", "A5 NO [OVERQUOTA] full\r\n"),
            ("A6 X {5000}", "A6 BAD no\r\n"),
        ],
    );
    let tag = imap.begin(b"X ").unwrap();
    assert!(imap.literal(tag, 3).unwrap().is_none());
    imap.write(b"abc").unwrap();
    imap.end().unwrap();
    let mut seen = 0;
    let outcome = imap.wait(tag, &mut |data| {
        seen += usize::from(data[1].is("EXISTS"));
        Ok(())
    });
    assert!(outcome.unwrap().has("APPENDUID"));
    assert_eq!(seen, 1);
    let tag = imap.begin(b"X ").unwrap();
    assert!(imap.literal(tag, 5000).unwrap().is_none());
    imap.write(&[b'y'; 5000]).unwrap();
    imap.end().unwrap();
    assert!(imap.wait(tag, &mut |_| Ok(())).unwrap().has("OVERQUOTA"));
    let tag = imap.begin(b"X ").unwrap();
    let refused = imap.literal(tag, 5000).unwrap().unwrap();
    assert_eq!(refused.word, "BAD");
    drop(imap);
    thread.join().unwrap();
}

#[test]
fn answers_may_come_in_any_order() {
    let (mut imap, thread) = logged_in(
        "X",
        &[
            ("A4 ONE", ""),
            ("A5 TWO", "A5 NO two\r\n* OK [ALERT] hear\r\nA4 OK one\r\n"),
            ("A6 END", "* BYE idle for too long\r\n"),
        ],
    );
    let one = imap.begin(b"ONE").unwrap();
    imap.end().unwrap();
    let two = imap.begin(b"TWO").unwrap();
    imap.end().unwrap();
    let mut alert = false;
    let first = imap.wait(one, &mut |data| {
        alert |= data[0].is("OK") && data[1].is("ALERT");
        Ok(())
    });
    assert_eq!(first.unwrap().text, "one");
    assert!(alert);
    assert_eq!(imap.wait(two, &mut |_| Ok(())).unwrap().text, "two");
    let e = imap.command(b"END", &mut |_| Ok(())).unwrap_err();
    assert_eq!(e.kind(), Kind::Io);
    assert!(e.to_string().contains("BYE idle for too long"), "{e}");
    thread.join().unwrap();
}

#[test]
fn a_server_cannot_fill_the_memory() {
    let long = format!("* X {{{}}}\r\n", MAX_RESPONSE + 1);
    let (mut imap, thread) = logged_in("X", &[("A4 X", &long)]);
    let e = imap.command(b"X", &mut |_| Ok(())).unwrap_err();
    assert_eq!(e.kind(), Kind::Protocol);
    thread.join().unwrap();
}
