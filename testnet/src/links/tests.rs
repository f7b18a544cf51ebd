use std::io::Seek;
use std::process::Command;
use std::thread::spawn;

use super::*;
use crate::manifest::{Disturbance, MAX_SILOS};

/// Where a test, known by its seed, begins to look for ports: others look elsewhere.
fn start(seed: u64) -> u64 {
    u64::from(std::process::id()).wrapping_mul(37) + 6000 + seed * 100
}

/// Two nodes, of which the second sends back what it gets.
fn echo(seed: u64) -> (Links, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = listener.local_addr().unwrap().port();
    let echoing = listener.try_clone().unwrap();
    spawn(move || {
        while let Ok((stream, _)) = echoing.accept() {
            spawn(move || {
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    });
    (Links::new(&[1, target], start(seed), seed).unwrap(), listener)
}

fn dial(links: &Links) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, links.port(0, 1).unwrap())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn rules(disturb: &[(usize, usize, Disturbance)]) -> Rules {
    let mut rules = Rules::open(2);
    for (from, to, disturbance) in disturb {
        rules.of(*from, *to).unwrap().add(*disturbance);
    }
    rules
}

fn there_and_back(stream: &mut TcpStream, bytes: usize) -> Duration {
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
    let started = Instant::now();
    let (mut writer, copy) = (stream.try_clone().unwrap(), sent.clone());
    let writes = spawn(move || writer.write_all(&copy).unwrap());
    let mut got = vec![0; bytes];
    stream.read_exact(&mut got).unwrap();
    writes.join().unwrap();
    assert!(got == sent, "every byte in its place");
    started.elapsed()
}

#[test]
fn everything_passes_and_ends_as_it_does_without() {
    let (links, _listener) = echo(1);
    let mut stream = dial(&links);
    there_and_back(&mut stream, 3_000_000);
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the end is passed on, and the answer to it");
    let ports: Vec<u16> = links.ports().collect();
    assert_eq!(ports.len(), 2);
    drop(links);
    for port in ports {
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok(), "no port is left");
    }
}

#[test]
fn each_way_is_delayed_by_itself_and_slow_lines_take_their_time() {
    let (links, _listener) = echo(2);
    let mut stream = dial(&links);
    there_and_back(&mut stream, 10);
    links.set(rules(&[(0, 1, Disturbance::Delay(Duration::from_millis(150)))]));
    let took = there_and_back(&mut stream, 10);
    assert!(took >= Duration::from_millis(140), "{took:?}");
    links.set(rules(&[(1, 0, Disturbance::Slow { bytes_per_second: 100_000 })]));
    let slow = there_and_back(&mut stream, 50_000);
    assert!(slow >= Duration::from_millis(450), "{slow:?}");
    links.set(Rules::open(2));
    assert!(there_and_back(&mut stream, 50_000) < slow, "and at once again");
}

#[test]
fn lost_segments_come_later_and_in_order() {
    let (links, _listener) = echo(3);
    let mut stream = dial(&links);
    links.set(rules(&[(0, 1, Disturbance::Loss { per_mille: 100 })]));
    let took = there_and_back(&mut stream, 60 * SEGMENT_BYTES);
    assert!(took >= SENT_AGAIN_AFTER, "{took:?}");
}

#[test]
fn a_stalled_link_looks_alive_and_a_cut_one_does_not() {
    let (links, _listener) = echo(4);
    let mut stream = dial(&links);
    there_and_back(&mut stream, 10);
    links.set(rules(&[(1, 0, Disturbance::Stall)]));
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.write_all(b"anybody?").unwrap();
    let kind = stream.read(&mut [0; 8]).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind:?}");
    links.set(Rules::open(2));
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut late = [0; 8];
    stream.read_exact(&mut late).unwrap();
    assert_eq!(&late, b"anybody?", "what waited arrives");

    links.set(rules(&[(0, 1, Disturbance::Cut)]));
    assert!(matches!(stream.read(&mut late), Ok(0) | Err(_)), "the connection breaks");
    let mut refused = dial(&links);
    assert!(matches!(refused.read(&mut late), Ok(0) | Err(_)), "and none is made");
    links.set(Rules::open(2));
    there_and_back(&mut dial(&links), 10);
}

/// Nodes that set the same rules over and over, and dial at once.
#[test]
fn who_dials_after_rules_were_set_meets_them() {
    let (links, _listener) = echo(5);
    for _ in 0..200 {
        links.set(rules(&[(0, 1, Disturbance::Cut)]));
        assert!(matches!(dial(&links).read(&mut [0; 8]), Ok(0) | Err(_)));
        links.set(Rules::open(2));
        there_and_back(&mut dial(&links), 10);
    }
    assert!(links.felt().cut >= 200, "{:?}", links.felt());
}

#[test]
fn all_connections_from_one_node_to_another_share_a_slow_line() {
    let (links, _listener) = echo(6);
    links.set(rules(&[(0, 1, Disturbance::Slow { bytes_per_second: 100_000 })]));
    let mut streams: Vec<TcpStream> = (0..3).map(|_| dial(&links)).collect();
    let began = Instant::now();
    let last = streams.pop().unwrap();
    let all: Vec<_> =
        streams.into_iter().map(|mut stream| spawn(move || there_and_back(&mut stream, 60_000))).collect();
    // who says little does not wait until the others have said everything
    let (mut little, mut several) = (last, 0);
    while !all.iter().any(|one| one.is_finished()) {
        there_and_back(&mut little, 100);
        several += 1;
    }
    for one in all {
        one.join().unwrap();
    }
    assert!(began.elapsed() >= Duration::from_millis(1100), "{:?}", began.elapsed());
    assert!(several >= 2, "{several}");
    assert!(links.felt().slowed > 80, "{:?}", links.felt());
}

#[test]
fn who_has_given_up_on_a_stalled_link_keeps_nobody_from_dialling() {
    let (links, _listener) = echo(7);
    links.set(rules(&[(1, 0, Disturbance::Stall)]));
    for _ in 0..3 * MAX_CONNECTIONS {
        // as they do, it says something first
        dial(&links).write_all(b"hello").unwrap();
    }
    let mut last = dial(&links);
    last.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let kind = last.read(&mut [0; 8]).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind:?}");
    last.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    links.set(Rules::open(2));
    there_and_back(&mut last, 10);
    assert!(links.felt().stalled > 0);
}

/// A node whose queue of connections is full takes no more, which is learned only in time.
#[test]
fn a_node_that_takes_no_connection_keeps_nobody_from_setting_rules() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&target, CONNECT) {
        queued.push(stream);
        assert!(queued.len() < 10_000);
    }
    let links = Links::new(&[1, target.port()], start(8), 8).unwrap();
    let _clients: Vec<TcpStream> = (0..MAX_CONNECTIONS).map(|_| dial(&links)).collect();
    std::thread::sleep(CONNECT);
    let began = Instant::now();
    links.set(rules(&[(0, 1, Disturbance::Cut)]));
    // all of them, one after the other, take 6.4 s
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn as_many_silos_as_there_may_be_have_links() {
    let targets: Vec<u16> = (1..=MAX_SILOS as u16).collect();
    let links = Links::new(&targets, start(0) + 11_000, 9).unwrap();
    let mut ports: Vec<u16> = links.ports().collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), MAX_SILOS * (MAX_SILOS - 1));
}

/// Runs one of the ignored tests below in a process of its own that may have few open files.
fn with_few_open_files(test: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 48; exec \"$0\" --ignored --exact \"$1\" --nocapture"]);
    command.arg(std::env::current_exe().unwrap()).arg(format!("links::tests::{test}"));
    let output = command.output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
}

#[test]
fn without_open_files_it_says_so_at_once_or_waits_quietly() {
    with_few_open_files("few_open_files");
}

#[test]
#[ignore = "needs a process of its own"]
fn few_open_files() {
    let error = allow_open_files(4).unwrap_err().to_string();
    assert!(error.contains("links between 4 nodes") && error.contains("48") && error.contains("ulimit -n"), "{error}");

    let mut usage = std::fs::File::open("/proc/self/stat").unwrap();
    let mut ticks = || -> u64 {
        let mut text = String::new();
        usage.rewind().unwrap();
        usage.read_to_string(&mut text).unwrap();
        // after the name: the twelfth and thirteenth are of the processor, in hundredths of a second
        let fields = text.rsplit(')').next().unwrap().split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    };
    let targets = [1, 2];
    let links = Links::between(&targets, start(10), 10).unwrap();
    links.set(rules(&[(0, 1, Disturbance::Stall)]));
    let port = links.port(0, 1).unwrap();
    let spare = std::fs::File::open("/dev/null").unwrap();
    let mut clients = Vec::new();
    while let Ok(client) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        clients.push(client);
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(spare);
    // unless somebody was waiting already
    clients.extend(TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks() - before;
    assert!(used < 20, "{used} hundredths of a second of the processor in 2 s of waiting");
    // and goes on when there are some again
    clients.drain(..clients.len() - 1);
    let mut last = clients.pop().unwrap();
    links.set(rules(&[(0, 1, Disturbance::Cut)]));
    last.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(matches!(last.read(&mut [0; 8]), Ok(0) | Err(_)));
}
