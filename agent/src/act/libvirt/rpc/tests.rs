//! A client against a libvirt that is made up: what it sends byte by byte, and what becomes of answers that are late, wrong,
//! cut off or never come.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Notify,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    connection::Connection,
    error::{Code, Ended, Error},
    events::{self, LONGEST_PAUSE},
    packet::{self, Header, Kind, PING, PONG, Program, Status},
    procedures::{
        self, DomainStatsRecord, EVENT_NAMES, EVENTS, RemoteDomain, RemoteError, RemoteNetwork,
        TypedParam, TypedValue,
    },
    xdr::{Malformed, Pack, Writer},
};

/// The other end of a connection.
struct Libvirt(UnixStream);

impl Libvirt {
    /// The next packet.
    async fn hear(&mut self) -> (Header, Vec<u8>) {
        let mut length = [0; packet::LENGTH];
        self.0.read_exact(&mut length).await.unwrap();
        let mut packet = length.to_vec();
        packet.resize(packet::length(&length).unwrap().unwrap(), 0);
        self.0
            .read_exact(&mut packet[packet::LENGTH..])
            .await
            .unwrap();
        let (header, payload) = packet::open(&packet).unwrap();
        (header, payload.to_vec())
    }

    async fn say(&mut self, header: Header, payload: &[u8]) {
        let packet = packet::seal(header, payload).unwrap();
        self.0.write_all(&packet).await.unwrap();
    }

    /// Answers the next call well.
    async fn answer(&mut self, payload: impl Pack) -> Header {
        let (call, _) = self.hear().await;
        self.say(reply(call), &packed(&payload)).await;
        call
    }
}

fn pair() -> (Connection, Libvirt) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Connection::over(ours), Libvirt(theirs))
}

fn packed(value: &impl Pack) -> Vec<u8> {
    let mut writer = Writer::default();
    value.pack(&mut writer);
    writer.finish().unwrap()
}

fn reply(call: Header) -> Header {
    Header {
        kind: Kind::Reply,
        ..call
    }
}

fn part(call: Header, status: Status) -> Header {
    Header {
        kind: Kind::Stream,
        status,
        ..call
    }
}

fn keepalive(procedure: i32) -> Header {
    Header {
        program: Program::KEEPALIVE,
        procedure,
        kind: Kind::Message,
        serial: 0,
        status: Status::Ok,
    }
}

fn refused(code: i32, message: &str) -> RemoteError {
    RemoteError {
        code,
        domain: 10,
        message: Some(message.to_owned()),
        level: 2,
        dom: Some(remote_domain()),
        strings: (Some("%s".to_owned()), None, None),
        numbers: (-1, -1),
        net: Some(RemoteNetwork {
            name: "default".to_owned(),
            uuid: [7; 16],
        }),
    }
}

fn remote_domain() -> RemoteDomain {
    RemoteDomain {
        name: "vm".to_owned(),
        uuid: [3; 16],
        id: -1,
    }
}

/// Why a call was lost.
async fn lost<T: std::fmt::Debug>(call: impl Future<Output = Result<T, Error>>) -> Ended {
    match call.await {
        Err(Error::Lost(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// What a procedure of libvirt's is numbered is a fact that must not change by accident.
#[test]
fn procedures_have_the_numbers_that_libvirt_gave_them() {
    let lines = procedures::ALL
        .iter()
        .map(|(program, number, name)| format!("{program} {number} {name}"));
    let events = EVENTS.iter().zip(EVENT_NAMES);
    let events = events.map(|(event, name)| format!("event {} {} {name}", event.id, event.message));
    insta::assert_snapshot!(lines.chain(events).collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn a_question_lies_byte_by_byte_as_libvirt_expects_it() {
    let (connection, mut libvirt) = pair();
    let uuid = Uuid::from_bytes(*b"0123456789abcdef");
    let asked = async {
        let domain = connection.lookup_by_uuid(uuid).await.unwrap();
        assert_eq!(
            (domain.get_name(), domain.get_uuid()),
            ("vm", Uuid::from_bytes([3; 16]))
        );
        domain.attach_device_flags("<disk/>", 1).await.unwrap();
        let answer = domain.qemu_agent_command("{}", 5).await.unwrap();
        assert_eq!(answer.as_deref(), Some("yes"));
    };
    let heard = async {
        let mut first = [0; 44];
        libvirt.0.read_exact(&mut first).await.unwrap();
        let expected = b"\0\0\0\x2c\x20\0\x80\x86\0\0\0\x01\0\0\0\x18\0\0\0\0\0\0\0\x01\0\0\0\0\
            0123456789abcdef";
        assert_eq!(
            first.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
        let (header, _) = packet::open(&first).unwrap();
        libvirt.say(reply(header), &packed(&remote_domain())).await;

        let mut second = [0; 72];
        libvirt.0.read_exact(&mut second).await.unwrap();
        let expected = b"\0\0\0\x48\x20\0\x80\x86\0\0\0\x01\0\0\0\xa0\0\0\0\0\0\0\0\x02\0\0\0\0\
            \0\0\0\x02vm\0\0\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\xff\xff\xff\xff\
            \0\0\0\x07<disk/>\0\0\0\0\x01";
        assert_eq!(
            second.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
        let (header, _) = packet::open(&second).unwrap();
        libvirt.say(reply(header), &[]).await;

        let mut third = [0; 72];
        libvirt.0.read_exact(&mut third).await.unwrap();
        let expected = b"\0\0\0\x48\x20\0\x80\x87\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\x03\0\0\0\0\
            \0\0\0\x02vm\0\0\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\xff\xff\xff\xff\
            \0\0\0\x02{}\0\0\0\0\0\x05\0\0\0\0";
        assert_eq!(
            third.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
        let (header, _) = packet::open(&third).unwrap();
        let answer = b"\0\0\0\x01\0\0\0\x03yes\0";
        libvirt.say(reply(header), answer).await;
    };
    tokio::join!(asked, heard);
}

#[tokio::test]
async fn answers_in_any_order_find_who_waits_for_them() {
    let (connection, mut libvirt) = pair();
    let both = async { tokio::join!(connection.get_lib_version(), connection.get_hyp_version()) };
    let answers = async {
        let (first, _) = libvirt.hear().await;
        let (second, _) = libvirt.hear().await;
        assert_ne!(first.serial, second.serial);
        for header in [second, first] {
            libvirt
                .say(
                    reply(header),
                    &packed(&u64::from(header.procedure.unsigned_abs())),
                )
                .await;
        }
    };
    let ((library, hypervisor), ()) = tokio::join!(both, answers);
    assert_eq!((library.unwrap(), hypervisor.unwrap()), (157, 4));
}

#[tokio::test]
async fn an_answer_that_comes_byte_by_byte_or_with_the_next_one_is_read() {
    let (connection, mut libvirt) = pair();
    let asked = async {
        let many = "x".repeat(300_000);
        let domains = connection.list_all_domains(0).await.unwrap();
        assert_eq!(domains[0].get_xml_desc(0).await.unwrap(), many);
        tokio::join!(connection.get_lib_version(), connection.get_hyp_version())
    };
    let answers = async {
        let (call, _) = libvirt.hear().await;
        let answer = packed(&(vec![remote_domain()], 1_u32));
        for byte in packet::seal(reply(call), &answer).unwrap() {
            libvirt.0.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        libvirt.answer("x".repeat(300_000)).await;
        let (first, _) = libvirt.hear().await;
        let (second, _) = libvirt.hear().await;
        let mut both = packet::seal(reply(first), &packed(&1_u64)).unwrap();
        both.extend(packet::seal(keepalive(PONG), &[]).unwrap());
        both.extend(packet::seal(reply(second), &packed(&2_u64)).unwrap());
        libvirt.0.write_all(&both).await.unwrap();
    };
    let ((first, second), ()) = tokio::join!(asked, answers);
    assert_eq!((first.unwrap(), second.unwrap()), (1, 2));
}

#[tokio::test]
async fn libvirt_s_no_is_told_in_its_own_words_and_the_connection_goes_on() {
    let (connection, mut libvirt) = pair();
    let asked = async {
        let error = connection.lookup_by_name("vm").await.unwrap_err();
        assert_eq!(error.code(), Some(Code::NO_DOMAIN));
        assert_eq!(error.message(), "Domain not found");
        assert_eq!(error.to_string(), "Domain not found [code=42, domain=10]");
        // An error that cannot be read is one all the same.
        let error = connection.lookup_by_name("vm").await.unwrap_err();
        assert!(
            matches!(error, Error::Malformed(Malformed::Short)),
            "{error:?}"
        );
        // So is an answer of another shape.
        let error = connection.get_lib_version().await.unwrap_err();
        assert!(
            matches!(error, Error::Malformed(Malformed::Rest(4))),
            "{error:?}"
        );
        assert_eq!(connection.get_lib_version().await.unwrap(), 9_000_000);
    };
    let answers = async {
        for payload in [packed(&refused(42, "Domain not found")), vec![0; 4]] {
            let (call, _) = libvirt.hear().await;
            let error = Header {
                status: Status::Error,
                ..reply(call)
            };
            libvirt.say(error, &payload).await;
        }
        libvirt.answer((1_u64, 2_u32)).await;
        libvirt.answer(9_000_000_u64).await;
    };
    tokio::join!(asked, answers);
}

#[tokio::test]
async fn what_cannot_be_said_is_refused_and_nothing_is_sent() {
    let (connection, mut libvirt) = pair();
    for name in ["a\0b".to_owned(), "x".repeat(5 << 20)] {
        let error = connection.lookup_by_name(&name).await.unwrap_err();
        assert!(matches!(error, Error::Unsayable(_)), "{error:?}");
    }
    let (version, call) = tokio::join!(connection.get_lib_version(), libvirt.answer(1_u64));
    assert_eq!((version.unwrap(), call.serial), (1, 1));
}

/// Whatever else comes ends the connection at once, and its calls hear why.
#[tokio::test]
async fn what_libvirt_would_never_send_ends_the_connection() {
    type Wrong = fn(Header) -> Vec<u8>;
    let seal = |header, payload: &[u8]| packet::seal(header, payload).unwrap();
    let wrong: [(Wrong, &str); 10] = [
        (|_| vec![255; 8], "4294967295 bytes"),
        (|_| vec![0, 0, 0, 3], "3 bytes"),
        (|_| vec![0; 28], "0 bytes"),
        (
            |call| {
                let mut packet = packet::seal(reply(call), &[]).unwrap();
                packet[11] = 9;
                packet
            },
            "version 9",
        ),
        (
            |call| {
                packet::seal(
                    Header {
                        serial: 99,
                        ..reply(call)
                    },
                    &[0; 8],
                )
                .unwrap()
            },
            "serial number 99 was not expected",
        ),
        (
            |call| {
                packet::seal(
                    Header {
                        procedure: 5,
                        ..reply(call)
                    },
                    &[0; 8],
                )
                .unwrap()
            },
            "procedure 5",
        ),
        (
            |call| {
                packet::seal(
                    Header {
                        program: Program::QEMU,
                        ..reply(call)
                    },
                    &[0; 8],
                )
                .unwrap()
            },
            "program 0x20008087",
        ),
        (|call| packet::seal(call, &[0; 8]).unwrap(), "Call"),
        (
            |call| {
                packet::seal(
                    Header {
                        kind: Kind::Other(5),
                        ..call
                    },
                    &[0; 8],
                )
                .unwrap()
            },
            "Other(5)",
        ),
        (
            |call| packet::seal(part(call, Status::Continue), b"part").unwrap(),
            "Stream",
        ),
    ];
    for (wrong, words) in wrong {
        let (connection, mut libvirt) = pair();
        let asked = async {
            let (first, second) = tokio::join!(
                lost(connection.get_lib_version()),
                lost(connection.get_lib_version())
            );
            let both = format!("{first} {second}");
            assert!(both.contains(words), "{words}: {both}");
            assert!(!connection.is_alive());
            lost(connection.get_lib_version()).await;
        };
        let answers = async {
            let (call, _) = libvirt.hear().await;
            libvirt.0.write_all(&wrong(call)).await.unwrap();
        };
        tokio::join!(asked, answers);
    }
    // What nobody asked for and is no answer is passed by.
    let (connection, mut libvirt) = pair();
    let answers = async {
        let (call, _) = libvirt.hear().await;
        let event = Header {
            kind: Kind::Message,
            serial: 0,
            procedure: 318,
            ..call
        };
        let mut packets = seal(event, b"whatever it is.!");
        packets.extend(seal(reply(call), &packed(&7_u64)));
        libvirt.0.write_all(&packets).await.unwrap();
    };
    let (version, ()) = tokio::join!(connection.get_lib_version(), answers);
    assert_eq!(version.unwrap(), 7);
}

#[tokio::test]
async fn a_connection_that_ends_in_the_middle_is_lost_for_all_who_wait() {
    for rest in [0, 3, 10, 30] {
        let (connection, mut libvirt) = pair();
        let asked = async {
            let both = tokio::join!(
                lost(connection.get_lib_version()),
                lost(connection.get_hyp_version())
            );
            for why in [both.0, both.1] {
                assert!(matches!(why, Ended::Closed), "{why}");
            }
            assert!(!connection.is_alive());
        };
        let answers = async {
            let (call, _) = libvirt.hear().await;
            libvirt.hear().await;
            let packet = packet::seal(reply(call), &packed(&7_u64)).unwrap();
            libvirt.0.write_all(&packet[..rest]).await.unwrap();
            drop(libvirt);
        };
        tokio::join!(asked, answers);
    }
}

#[tokio::test(start_paused = true)]
async fn a_libvirt_that_says_nothing_is_asked_whether_it_is_there_and_then_given_up() {
    let (connection, mut libvirt) = pair();
    let begin = Instant::now();
    let asked = async {
        let why = lost(connection.get_lib_version()).await;
        assert!(matches!(why, Ended::Silent(_)), "{why}");
        assert_eq!(begin.elapsed().as_secs(), 20);
        assert!(!connection.is_alive());
    };
    let heard = async {
        libvirt.hear().await;
        for _ in 0..3 {
            assert_eq!(libvirt.hear().await.0, keepalive(PING));
        }
    };
    tokio::join!(asked, heard);
}

#[tokio::test(start_paused = true)]
async fn a_call_may_take_for_ever_while_libvirt_says_that_it_is_there() {
    let (connection, mut libvirt) = pair();
    let asked = connection.get_lib_version();
    let answers = async {
        let (call, _) = libvirt.hear().await;
        for _ in 0..500 {
            assert_eq!(libvirt.hear().await.0, keepalive(PING));
            libvirt.say(keepalive(PONG), &[]).await;
        }
        libvirt.say(reply(call), &packed(&7_u64)).await;
    };
    let (version, ()) = tokio::join!(asked, answers);
    assert_eq!(version.unwrap(), 7);
    // Nobody waits now, so nobody is asked anything, and it does not matter how long libvirt is quiet.
    let quiet = tokio::time::timeout(Duration::from_secs(3600), libvirt.hear());
    assert!(quiet.await.is_err());
    let (version, _) = tokio::join!(connection.get_lib_version(), libvirt.answer(8_u64));
    assert_eq!(version.unwrap(), 8);
}

#[tokio::test]
async fn libvirt_is_told_that_somebody_is_there() {
    let (connection, mut libvirt) = pair();
    libvirt.say(keepalive(PING), &[]).await;
    assert_eq!(libvirt.hear().await.0, keepalive(PONG));
    drop(connection);
    let mut nothing = Vec::new();
    libvirt.0.read_to_end(&mut nothing).await.unwrap();
    assert!(nothing.is_empty(), "closed with its last handle");
}

#[tokio::test]
async fn whoever_gives_up_does_not_disturb_who_asks_next() {
    let (connection, mut libvirt) = pair();
    let given_up = tokio::time::timeout(Duration::from_millis(10), connection.get_lib_version());
    assert!(given_up.await.is_err());
    let answers = async {
        let (old, _) = libvirt.hear().await;
        let (new, _) = libvirt.hear().await;
        libvirt.say(reply(old), &packed(&1_u64)).await;
        libvirt.say(reply(new), &packed(&2_u64)).await;
    };
    let (version, ()) = tokio::join!(connection.get_lib_version(), answers);
    assert_eq!(version.unwrap(), 2);
}

/// A domain of a connection.
async fn domain(connection: &Connection, libvirt: &mut Libvirt) -> super::Domain {
    let (domain, _) = tokio::join!(
        connection.lookup_by_name("vm"),
        libvirt.answer(remote_domain())
    );
    domain.unwrap()
}

#[tokio::test]
async fn a_picture_comes_in_parts_and_its_end_is_confirmed() {
    let (connection, mut libvirt) = pair();
    let domain = domain(&connection, &mut libvirt).await;
    let answers = async {
        let call = libvirt.answer(Some("image/png".to_owned())).await;
        for payload in [b"first ".as_slice(), b"second", b""] {
            libvirt.say(part(call, Status::Continue), payload).await;
        }
        assert_eq!(libvirt.hear().await, (part(call, Status::Ok), Vec::new()));
        libvirt.say(part(call, Status::Ok), &[]).await;
    };
    let (picture, ()) = tokio::join!(domain.screenshot(12), answers);
    let (media_type, bytes) = picture.unwrap();
    assert_eq!(
        (media_type.as_deref(), bytes.as_slice()),
        (Some("image/png"), b"first second".as_slice())
    );
}

/// libvirt opens the stream before it answers, and answers from another thread than it sends from.
#[tokio::test]
async fn a_picture_may_begin_or_end_or_break_off_before_the_answer_comes() {
    let (connection, mut libvirt) = pair();
    let domain = domain(&connection, &mut libvirt).await;
    let error = packed(&refused(38, "cannot read"));
    let png = packed(&Some("image/png".to_owned()));
    let answers = async {
        for early in [1, 2, 3] {
            let (call, _) = libvirt.hear().await;
            let payloads = [b"first ".as_slice(), b"second", b""];
            let (before, after) = payloads.split_at(early);
            for payload in before {
                libvirt.say(part(call, Status::Continue), payload).await;
            }
            libvirt.say(reply(call), &png).await;
            for payload in after {
                libvirt.say(part(call, Status::Continue), payload).await;
            }
            assert_eq!(libvirt.hear().await, (part(call, Status::Ok), Vec::new()));
            libvirt.say(part(call, Status::Ok), &[]).await;
        }
        let (call, _) = libvirt.hear().await;
        libvirt.say(part(call, Status::Continue), b"half").await;
        libvirt.say(part(call, Status::Error), &error).await;
        libvirt.say(reply(call), &png).await;
        libvirt.answer(7_u64).await;
    };
    let asked = async {
        for _ in 0..3 {
            let (media_type, bytes) = domain.screenshot(12).await.unwrap();
            assert_eq!(media_type.as_deref(), Some("image/png"));
            assert_eq!(bytes, b"first second");
        }
        let error = domain.screenshot(12).await.unwrap_err();
        assert_eq!(error.code(), Some(Code(38)));
        assert_eq!(connection.get_lib_version().await.unwrap(), 7);
    };
    tokio::join!(asked, answers);
}

#[tokio::test]
async fn a_picture_that_is_too_large_is_given_up_and_the_connection_goes_on() {
    let (connection, mut libvirt) = pair();
    let domain = domain(&connection, &mut libvirt).await;
    let answers = async {
        let call = libvirt.answer(None::<String>).await;
        for _ in 0..3 {
            libvirt.say(part(call, Status::Continue), b"12345678").await;
        }
        assert_eq!(
            libvirt.hear().await,
            (part(call, Status::Error), Vec::new())
        );
        libvirt.say(part(call, Status::Continue), &[]).await;
        libvirt.say(part(call, Status::Ok), &[]).await;
        libvirt.answer(7_u64).await;
    };
    let asked = async {
        let error = domain.screenshot(12).await.unwrap_err();
        assert!(matches!(error, Error::TooMuch(12)), "{error:?}");
        assert_eq!(connection.get_lib_version().await.unwrap(), 7);
    };
    tokio::join!(asked, answers);
}

#[tokio::test]
async fn a_picture_that_fails_half_way_or_before_is_no_picture() {
    let (connection, mut libvirt) = pair();
    let domain = domain(&connection, &mut libvirt).await;
    let error = packed(&refused(38, "cannot read"));
    let answers = async {
        let call = libvirt.answer(None::<String>).await;
        libvirt.say(part(call, Status::Continue), b"half").await;
        libvirt.say(part(call, Status::Error), &error).await;
        let (call, _) = libvirt.hear().await;
        let no = Header {
            status: Status::Error,
            ..reply(call)
        };
        libvirt.say(no, &error).await;
    };
    let asked = async {
        for _ in 0..2 {
            let error = domain.screenshot(100).await.unwrap_err();
            assert_eq!(error.code(), Some(Code(38)));
        }
    };
    tokio::join!(asked, answers);
}

#[tokio::test]
async fn figures_of_every_type_are_read() {
    let (connection, mut libvirt) = pair();
    let values = [
        TypedValue::Int(-1),
        TypedValue::Uint(2),
        TypedValue::Llong(-3),
        TypedValue::Ullong(u64::MAX),
        TypedValue::Double(0.5_f64.to_bits()),
        TypedValue::Boolean(1),
        TypedValue::String("vda".to_owned()),
    ];
    let params = values
        .into_iter()
        .enumerate()
        .map(|(number, value)| TypedParam {
            field: format!("figure.{number}"),
            value,
        });
    let record = DomainStatsRecord {
        dom: RemoteDomain {
            id: 4,
            ..remote_domain()
        },
        params: params.collect(),
    };
    let sent = vec![
        record.clone(),
        DomainStatsRecord {
            dom: remote_domain(),
            params: Vec::new(),
        },
    ];
    let (records, _) = tokio::join!(connection.get_all_domain_stats(2, 1), libvirt.answer(sent));
    let records = records.unwrap();
    assert_eq!(records[0], record);
    assert_eq!(
        records
            .iter()
            .map(DomainStatsRecord::id)
            .collect::<Vec<_>>(),
        [Some(4), None]
    );
    let unknown = (vec![Arc::new(remote_domain())], 1_u32, 8_i32);
    let (error, _) = tokio::join!(
        connection.get_all_domain_stats(2, 1),
        libvirt.answer(unknown)
    );
    assert!(matches!(error, Err(Error::Malformed(_))), "{error:?}");
}

#[tokio::test]
async fn only_a_libvirt_that_asks_nobody_who_they_are_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("libvirt-sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let address = format!("qemu:///system?socket={}", path.display())
        .parse()
        .unwrap();
    for (ways, works) in [
        (vec![], true),
        (vec![0], true),
        (vec![1, 0], true),
        (vec![2], false),
    ] {
        let answers = async {
            let mut libvirt = Libvirt(listener.accept().await.unwrap().0);
            assert_eq!(libvirt.answer(ways).await.procedure, 66);
            if works {
                let (open, payload) = libvirt.hear().await;
                assert_eq!(open.procedure, 1);
                assert_eq!(payload, packed(&(Some("qemu:///system".to_owned()), 0_u32)));
                libvirt.say(reply(open), &[]).await;
            }
        };
        let (opened, ()) = tokio::join!(Connection::open(&address), answers);
        match opened {
            Ok(_) => assert!(works),
            Err(error) => {
                assert!(
                    !works && matches!(error, Error::Authentication(2)),
                    "{error:?}"
                );
                assert!(
                    error.to_string().contains("run the agent as root"),
                    "{error}"
                );
            }
        }
    }
    drop(listener);
    let error = Connection::open(&address).await.unwrap_err();
    assert!(error.to_string().contains("libvirt-sock"), "{error}");
}

/// Whether somebody was told of an event since the last question.
async fn was_told(events: &Notify) -> bool {
    timeout(Duration::ZERO, events.notified()).await.is_ok()
}

/// A connection that is told of events.
fn listening() -> (Connection, Libvirt, Arc<Notify>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let events = Arc::new(Notify::new());
    let connection = Connection::served(ours, Some(Arc::clone(&events)));
    (connection, Libvirt(theirs), events)
}

#[tokio::test]
async fn events_are_asked_for_and_told_byte_by_byte_as_libvirt_does_it() {
    let (connection, mut libvirt, events) = listening();
    let heard = async {
        let mut call = [0; 36];
        libvirt.0.read_exact(&mut call).await.unwrap();
        let expected = b"\0\0\0\x24\x20\0\x80\x86\0\0\0\x01\0\0\x01\x3c\0\0\0\0\0\0\0\x01\0\0\0\0\
            \0\0\0\0\0\0\0\0";
        assert_eq!(
            call.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
        let (header, _) = packet::open(&call).unwrap();
        libvirt.say(reply(header), &packed(&5_i32)).await;
    };
    let (registered, ()) = tokio::join!(connection.domain_event_register_any(EVENTS[0]), heard);
    registered.unwrap();
    assert!(!was_told(&events).await);
    // The guest of callback 5's domain has powered itself off.
    let told = b"\0\0\0\x44\x20\0\x80\x86\0\0\0\x01\0\0\x01\x3e\0\0\0\x02\0\0\0\0\0\0\0\0\
        \0\0\0\x05\0\0\0\x02vm\0\0\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\
        \xff\xff\xff\xff\0\0\0\x05\0\0\0\0";
    libvirt.0.write_all(told).await.unwrap();
    timeout(Duration::from_secs(10), events.notified())
        .await
        .unwrap();
    // Whatever else nobody asked for is none.
    let other = |procedure| Header {
        program: Program::REMOTE,
        procedure,
        kind: Kind::Message,
        serial: 0,
        status: Status::Ok,
    };
    libvirt.say(other(331), b"ballooned").await;
    libvirt.say(keepalive(PING), &[]).await;
    assert_eq!(libvirt.hear().await.0, keepalive(PONG));
    assert!(!was_told(&events).await);
}

#[tokio::test]
async fn a_flood_of_events_of_any_content_leaves_one_reason_to_look_and_answers_come_through() {
    let (connection, mut libvirt, events) = listening();
    let answers = async {
        let (call, _) = libvirt.hear().await;
        for number in 0..20_000 {
            let event = Header {
                procedure: EVENTS[number % EVENTS.len()].message,
                kind: Kind::Message,
                ..call
            };
            libvirt.say(event, &vec![0xff; number % 50]).await;
        }
        libvirt.say(reply(call), &packed(&7_u64)).await;
    };
    let (version, ()) = tokio::join!(connection.get_lib_version(), answers);
    assert_eq!(version.unwrap(), 7);
    assert!(was_told(&events).await);
    assert!(!was_told(&events).await);
}

/// A libvirt where somebody listens: how they come, and what they ask.
struct Listened {
    listener: tokio::net::UnixListener,
    events: Arc<Notify>,
    _directory: tempfile::TempDir,
}

impl Listened {
    /// Somebody listens from now on.
    fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("libvirt-sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let address: super::Address = format!("qemu:///system?socket={}", path.display())
            .parse()
            .unwrap();
        let events = Arc::new(Notify::new());
        let told = Arc::clone(&events);
        tokio::spawn(async move { events::listen(&address, &told).await });
        Self {
            listener,
            events,
            _directory: directory,
        }
    }

    async fn accept(&self) -> Libvirt {
        let accepted = timeout(2 * LONGEST_PAUSE, self.listener.accept()).await;
        Libvirt(accepted.unwrap().unwrap().0)
    }

    /// Lets them in, and answers all they ask before they only listen.
    async fn welcome(&self) -> Libvirt {
        let mut libvirt = self.accept().await;
        assert_eq!(libvirt.answer(Vec::<i32>::new()).await.procedure, 66);
        assert_eq!(libvirt.answer(()).await.procedure, 1);
        for event in EVENTS {
            assert!(!was_told(&self.events).await);
            let (call, payload) = libvirt.hear().await;
            assert_eq!((call.procedure, payload), (316, packed(&(event.id, 0_u32))));
            libvirt.say(reply(call), &packed(&event.id)).await;
        }
        // Something may have happened before.
        timeout(Duration::from_secs(10), self.events.notified())
            .await
            .unwrap();
        libvirt
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_listens_comes_back_after_pauses_that_grow_to_ten_seconds() {
    let listened = Listened::begin();
    let mut pauses = Vec::new();
    let mut ended = Instant::now();
    // Closed at once, in the middle, after a welcome, and with what no libvirt says.
    for way in 0..8_u32 {
        let mut libvirt = match way % 4 {
            0 => listened.accept().await,
            1 => {
                let mut libvirt = listened.accept().await;
                libvirt.answer(Vec::<i32>::new()).await;
                libvirt
            }
            2 => listened.welcome().await,
            _ => {
                let mut libvirt = listened.accept().await;
                let (call, _) = libvirt.hear().await;
                libvirt.say(reply(call), b"nonsense").await;
                libvirt
            }
        };
        pauses.push(ended.elapsed().as_secs());
        if way == 6 {
            libvirt.0.write_all(&[255; 64]).await.unwrap();
        }
        drop(libvirt);
        ended = Instant::now();
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8, 10, 10, 10]);
    // One that lasts is asked now and then whether it is there, and the pauses begin anew.
    let mut libvirt = listened.welcome().await;
    for _ in 0..3 {
        let (call, _) = libvirt.hear().await;
        assert_eq!(call.procedure, 157);
        libvirt.say(reply(call), &packed(&9_000_000_u64)).await;
    }
    drop(libvirt);
    ended = Instant::now();
    listened.welcome().await;
    assert_eq!(ended.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_libvirt_that_says_nothing_any_more_is_listened_to_on_a_new_connection() {
    let listened = Listened::begin();
    let mut silent = listened.welcome().await;
    let begun = Instant::now();
    let (call, _) = silent.hear().await;
    assert_eq!(call.procedure, 157);
    for _ in 0..3 {
        assert_eq!(silent.hear().await.0, keepalive(PING));
    }
    listened.welcome().await;
    // It was asked after 30 s, and given up 20 s later.
    assert_eq!(begun.elapsed().as_secs(), 51);
}
