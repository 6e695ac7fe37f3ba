//! berth killed at any moment: what runs is adopted, what is half done is finished, nothing runs
//! twice.

use rustix::process::Signal;

use crate::harness::{Berth, small};

/// More places than an apply comes to; the loop ends where one gets through.
const MAX_POINTS: u32 = 60;

/// Runs `args` again and again, killed at one place further each time, from the same start; after
/// each the same command without a kill must come to the same end. Gives the number of places.
fn kill_at_every_point(
    berth: &Berth,
    args: &[&str],
    before: impl Fn(),
    after: impl Fn(u32),
) -> u32 {
    for point in 1..MAX_POINTS {
        before();
        let killed = berth.command(args).env("BERTH_CRASH_AT", point.to_string()).output().unwrap();
        let came_through = killed.status.success();
        if !came_through {
            use std::os::unix::process::ExitStatusExt as _;
            let said = String::from_utf8_lossy(&killed.stderr);
            assert_eq!(killed.status.signal(), Some(9), "at {point}: {said}");
            let again = berth.run(args);
            assert_eq!(again.code, Some(0), "after a kill at {point}: {}", again.stderr);
        }
        after(point);
        if came_through {
            return point - 1;
        }
    }
    panic!("more than {MAX_POINTS} places to be killed at");
}

#[test]
fn apply_survives_a_kill_between_any_two_steps() {
    let berth = Berth::new(0);
    berth.spec(&(small("a") + &small("b")));
    let start_from_nothing = || {
        berth.run(&["down"]).expect(0, &[]);
        assert_eq!(berth.engines(), Vec::<String>::new());
    };
    let points = kill_at_every_point(&berth, &["apply"], start_from_nothing, |point| {
        assert_eq!(berth.engines(), ["a-0", "b-0"], "after a kill at {point}");
        let states: Vec<_> = ["a-0", "b-0"].map(|id| berth.instance(id)["state"].clone()).into();
        assert_eq!(states, ["ready", "ready"], "after a kill at {point}");
    });
    assert!(points >= 12, "an apply of two instances has more than {points} steps");
}

#[test]
fn a_change_and_a_stop_survive_it_too() {
    let berth = Berth::new(1);
    // From one model to another: one stops, one starts.
    let (old, new) = (small("a"), small("b"));
    let start_with_a = || {
        berth.spec(&old);
        berth.run(&["apply"]).expect(0, &[]);
        berth.spec(&new);
    };
    let points = kill_at_every_point(&berth, &["apply"], start_with_a, |point| {
        assert_eq!(berth.engines(), ["b-0"], "after a kill at {point}");
    });
    assert!(points >= 8, "a change has more than {points} steps");
    let start_with_b = || berth.run(&["apply"]).expect(0, &[]);
    let points = kill_at_every_point(&berth, &["down"], start_with_b, |point| {
        assert_eq!(berth.engines(), Vec::<String>::new(), "after a kill at {point}");
    });
    assert!(points >= 4, "a stop has more than {points} steps");
}

/// A change that fails ends where it began, wherever berth was killed on the way.
#[test]
fn a_failing_change_survives_it_too() {
    let berth = Berth::new(4);
    let bad = small("a") + "extra_args = [\"--nope\"]\n";
    for point in 1..MAX_POINTS {
        berth.spec(&small("a"));
        berth.run(&["apply"]).expect(0, &[]);
        berth.spec(&bad);
        let killed = berth.command(&["apply"]).env("BERTH_CRASH_AT", point.to_string()).output();
        if killed.unwrap().status.code() == Some(1) {
            assert!(point >= 14, "a failing change has more than {point} steps");
            return;
        }
        let again = berth.run(&["apply"]);
        assert_eq!(again.code, Some(1), "after a kill at {point}: {}", again.stderr);
        let instance = berth.instance("a-0");
        let state = (&instance["state"], &instance["rolled_back"]);
        assert_eq!(state, (&"ready".into(), &true.into()), "after a kill at {point}");
        assert_eq!(berth.engines(), ["a-0"], "after a kill at {point}");
    }
    panic!("more than {MAX_POINTS} places to be killed at");
}

#[test]
fn up_adopts_what_a_killed_up_left() {
    let berth = Berth::new(2);
    berth.spec(&small("a"));
    let up = berth.up();
    let pid = berth.pid("a-0");
    up.signal(Signal::KILL);
    drop(up.wait());
    let status = berth.status();
    assert_eq!(status["controller_running"], false);
    assert_eq!(berth.instance("a-0")["state"], "ready", "engines go on without berth");

    let up = berth.up();
    assert!(up.said.contains("a-0: runs already, taken over"), "{}", up.said);
    assert_eq!(berth.pid("a-0"), pid);
    assert_eq!(berth.engines(), ["a-0"]);
    up.signal(Signal::INT);
    assert_eq!(up.wait().0, Some(0));
    assert_eq!(berth.engines(), Vec::<String>::new());
}

/// An engine that dies while no berth is there is started again by the next one.
#[test]
fn an_engine_that_died_meanwhile_is_started_again() {
    let berth = Berth::new(3);
    berth.spec(&small("a"));
    berth.run(&["apply"]).expect(0, &["a-0: ready"]);
    let pid = berth.pid("a-0");
    let port = berth.instance("a-0")["port"].as_u64().unwrap() as u16;
    crate::harness::send(pid, Signal::KILL);
    // A process that ends loses its environment a moment before its port.
    crate::harness::wait_until("the engine is gone", || {
        let is_free = std::net::TcpStream::connect(("127.0.0.1", port)).is_err();
        berth.engines().is_empty() && is_free
    });
    berth.run(&["apply"]).expect(0, &["a-0: failed", "next try in 1 s", "a-0: ready"]);
    assert_ne!(berth.pid("a-0"), pid);
}
