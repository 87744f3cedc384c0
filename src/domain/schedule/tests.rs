//! Exact orders for what people will notice, and the invariants for everything else.

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::daemon::Profile;

const NOW: Timestamp = Timestamp::from_secs(1_000_000);
const URL: &str = "https://example.com/a.git";

fn owner(n: u128) -> OwnerId {
    OwnerId(Uuid::from_u128(n))
}

fn contract(n: u128) -> ContractId {
    ContractId(Uuid::from_u128(n))
}

fn daemon(n: u128) -> DaemonId {
    DaemonId(Uuid::from_u128(n))
}

fn card(profiles: &[&str], labels: &[&str], repositories: &[&str]) -> Card {
    Card {
        profiles: profiles.iter().map(|p| Profile { name: (*p).to_owned(), version: String::new() }).collect(),
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
        repositories: repositories.iter().map(|r| (*r).to_owned()).collect(),
        slots: 4,
        ..Card::default()
    }
}

/// A small world: daemons with numbered ids, tasks with numbered ids, one call of `assign`.
#[derive(Debug, Default)]
struct World {
    heads: Vec<Head>,
    contracts: HashMap<ContractId, Load>,
    owners: HashMap<OwnerId, u32>,
    classes: HashMap<ClassId, Requirements>,
    hosts: Vec<(DaemonId, OwnerId, Card, u32)>,
    /// Those of the hosts that have not said yet that they take work.
    returning: Vec<DaemonId>,
}

impl World {
    fn host(&mut self, id: u128, of: u128, card: Card, free: u32) {
        self.hosts.push((daemon(id), owner(of), card, free));
    }

    fn plain_host(&mut self, id: u128, free: u32) {
        self.host(id, 1, card(&["shell"], &[], &[]), free);
    }

    /// A task of this owner and contract, which gets room for ten.
    fn task(&mut self, id: u128, of: u128, in_contract: u128, needs: &Requirements) -> &mut Head {
        let class = needs.class(owner(of));
        self.classes.insert(class, needs.clone());
        self.contracts.entry(contract(in_contract)).or_insert(Load { live: 0, concurrency: 10 });
        self.heads.push(Head {
            task: TaskId(Uuid::from_u128(id)),
            owner: owner(of),
            contract: contract(in_contract),
            class,
            priority: 0,
            created: NOW,
            repository: URL.to_owned(),
            first: Vec::new(),
            here: None,
            near: Vec::new(),
            avoid: Vec::new(),
        });
        self.heads.last_mut().unwrap()
    }

    fn plain_task(&mut self, id: u128, in_contract: u128) -> &mut Head {
        self.task(id, 1, in_contract, &Requirements::new("shell", &[], URL))
    }

    fn assign(&self) -> Vec<Assignment> {
        let hosts: Vec<Host<'_>> = (self.hosts.iter())
            .map(|(daemon, owner, card, free)| Host {
                daemon: *daemon,
                owner: *owner,
                card,
                free: *free,
                is_returning: self.returning.contains(daemon),
            })
            .collect();
        let input = Input {
            heads: &self.heads,
            contracts: self.contracts.clone(),
            owners: self.owners.clone(),
            classes: self.classes.clone(),
            hosts: &hosts,
        };
        assign(&input, NOW)
    }

    /// (task, daemon) by number, in order.
    fn answer(&self) -> Vec<(u128, u128)> {
        self.assign().iter().map(|a| (a.task.0.as_u128(), a.daemon.0.as_u128())).collect()
    }

    fn order(&self) -> Vec<u128> {
        self.answer().into_iter().map(|(task, _)| task).collect()
    }
}

#[test]
fn nothing_to_do_or_nobody_to_do_it() {
    let mut world = World::default();
    assert_eq!(world.answer(), []);
    world.plain_task(1, 1);
    assert_eq!(world.answer(), []);
    world.plain_host(1, 0);
    assert_eq!(world.answer(), []);
}

/// A daemon that is only just back gets what goes on in its worktrees, whoever chose it for other things, and nothing else.
#[test]
fn one_that_returns_gets_what_it_has() {
    let mut world = World::default();
    let back = DaemonId(Uuid::from_u128(1));
    world.plain_host(1, 1);
    world.returning.push(back);
    let chosen = world.plain_task(1, 1);
    (chosen.first, chosen.near) = (vec![back], vec![back]);
    assert_eq!(world.answer(), []);
    let has = world.plain_task(2, 1);
    (has.first, has.here) = (vec![back], Some(back));
    assert_eq!(world.answer(), [(2, 1)]);
    world.plain_host(2, 1);
    assert_eq!(world.answer(), [(1, 2), (2, 1)]);
}

#[test]
fn priority_then_age_then_id() {
    let mut world = World::default();
    world.plain_host(1, 10);
    world.plain_task(4, 1);
    world.plain_task(3, 1);
    world.plain_task(2, 1).created = NOW.before(Duration::from_secs(1));
    world.plain_task(1, 1).priority = -1;
    world.plain_task(5, 1).priority = 7;
    assert_eq!(world.order(), [5, 2, 3, 4, 1]);
}

#[test]
fn contracts_take_turns_and_the_emptiest_goes_first() {
    let mut world = World::default();
    world.plain_host(1, 10);
    for id in 1..=3 {
        world.plain_task(id, 1).created = NOW.before(Duration::from_secs(60));
        world.plain_task(10 + id, 2);
    }
    assert_eq!(world.order(), [1, 11, 2, 12, 3, 13]);
    world.contracts.get_mut(&contract(1)).unwrap().live = 2;
    assert_eq!(world.order(), [11, 12, 1, 13, 2, 3]);
}

#[test]
fn priority_is_stronger_than_fairness_between_contracts() {
    let mut world = World::default();
    world.plain_host(1, 3);
    for id in 1..=3 {
        world.plain_task(id, 1).priority = 1;
        world.plain_task(10 + id, 2);
    }
    assert_eq!(world.order(), [1, 2, 3]);
}

#[test]
fn owners_take_turns_and_the_emptiest_goes_first() {
    let mut world = World::default();
    let needs = Requirements::new("shell", &[], URL);
    for of in [1, 2] {
        world.host(of, of, card(&["shell"], &[], &[]), 10);
        for id in 1..=3 {
            world.task(of * 10 + id, of, of, &needs).priority = if of == 1 { 100 } else { 0 };
        }
    }
    assert_eq!(world.order(), [11, 21, 12, 22, 13, 23]);
    world.owners.insert(owner(1), 2);
    assert_eq!(world.order(), [21, 22, 11, 23, 12, 13]);
}

#[test]
fn concurrency_bounds_a_contract_and_a_closed_one_starts_nothing() {
    let mut world = World::default();
    world.plain_host(1, 10);
    for id in 1..=4 {
        world.plain_task(id, 1);
    }
    world.plain_task(5, 2);
    world.plain_task(6, 3);
    world.contracts.insert(contract(1), Load { live: 1, concurrency: 3 });
    world.contracts.insert(contract(2), Load { live: 0, concurrency: 0 });
    world.contracts.remove(&contract(3));
    assert_eq!(world.order(), [1, 2]);
}

#[test]
fn a_daemon_must_fit() {
    let labels = ["gpu".to_owned(), "big".to_owned()];
    let mut world = World::default();
    world.task(1, 1, 1, &Requirements::new("claude", &labels, URL));
    world.task(2, 1, 1, &Requirements::new("shell", &[], "/srv/repo"));
    world.task(3, 1, 1, &Requirements::new("shell", &[], "/srv/other"));
    world.host(1, 1, card(&["claude"], &["gpu"], &[]), 9);
    world.host(2, 1, card(&["shell"], &["gpu", "big"], &[]), 9);
    world.host(3, 2, card(&["claude", "shell"], &["gpu", "big"], &["/srv/repo", "/srv/other"]), 9);
    assert_eq!(world.answer(), []);
    world.host(4, 1, card(&["claude"], &["big", "gpu", "x"], &[]), 1);
    world.host(5, 1, card(&["shell"], &[], &["/srv/repo"]), 1);
    assert_eq!(world.answer(), [(1, 4), (2, 5)]);
    world.host(6, 1, Card { any_path: true, ..card(&["shell"], &[], &[]) }, 1);
    assert_eq!(world.answer(), [(1, 4), (2, 6), (3, 6)].map(|(t, d)| if t == 2 { (2, 5) } else { (t, d) }));
}

#[test]
fn a_daemon_that_takes_no_work_gets_none() {
    let mut world = World::default();
    world.plain_task(1, 1);
    world.host(1, 1, Card { not_accepting: "disk full".to_owned(), ..card(&["shell"], &[], &[]) }, 4);
    assert_eq!(world.answer(), []);
}

#[test]
fn work_spreads_to_the_daemon_with_most_room_then_by_id() {
    let mut world = World::default();
    world.plain_host(1, 1);
    world.plain_host(2, 3);
    world.plain_host(3, 2);
    for id in 1..=7 {
        world.plain_task(id, 1);
    }
    assert_eq!(world.answer(), [(1, 2), (2, 2), (3, 3), (4, 1), (5, 2), (6, 3)]);
}

#[test]
fn work_goes_to_its_dependencies_results_then_to_its_repository() {
    let mut world = World::default();
    world.plain_host(1, 9);
    world.host(2, 1, card(&["shell"], &[], &[URL]), 2);
    world.plain_host(3, 1);
    world.plain_task(1, 1).near = vec![daemon(3)];
    world.plain_task(2, 1).near = vec![daemon(3)];
    world.plain_task(3, 1);
    world.plain_task(4, 1);
    assert_eq!(world.answer(), [(1, 3), (2, 2), (3, 2), (4, 1)]);
}

#[test]
fn of_two_with_results_the_one_with_the_repository_is_better() {
    let mut world = World::default();
    world.plain_host(1, 9);
    world.host(2, 1, card(&["shell"], &[], &[URL]), 1);
    world.plain_task(1, 1).near = vec![daemon(1), daemon(2)];
    assert_eq!(world.answer(), [(1, 2)]);
}

/// Soft: it changes the order, it expires, and it never leaves a task without any daemon.
#[test]
fn an_avoided_daemon_is_the_last_choice() {
    let avoid = |id, until| Avoid { daemon: daemon(id), until };
    let later = NOW.after(Duration::from_secs(1));
    let mut world = World::default();
    world.host(1, 1, card(&["shell"], &[], &[URL]), 9);
    world.plain_host(2, 1);
    let head = world.plain_task(1, 1);
    (head.near, head.avoid) = (vec![daemon(1)], vec![avoid(1, later)]);
    assert_eq!(world.answer(), [(1, 2)]);
    // The only other one is full: an avoided daemon is better than waiting.
    world.hosts[1].3 = 0;
    assert_eq!(world.answer(), [(1, 1)]);
    // The time is over.
    world.hosts[1].3 = 1;
    world.heads[0].avoid = vec![avoid(1, NOW)];
    assert_eq!(world.answer(), [(1, 1)]);
    // All are avoided: the best of them.
    world.heads[0].avoid = vec![avoid(2, later), avoid(1, later)];
    assert_eq!(world.answer(), [(1, 1)]);
}

/// Somebody else's avoidance does not keep a daemon from me.
#[test]
fn avoidance_is_of_one_task() {
    let mut world = World::default();
    world.plain_host(1, 2);
    world.plain_host(2, 1);
    world.plain_task(1, 1).avoid = vec![Avoid { daemon: daemon(1), until: NOW.after(Duration::from_secs(1)) }];
    world.plain_task(2, 1);
    world.plain_task(3, 1);
    assert_eq!(world.answer(), [(1, 2), (2, 1), (3, 1)]);
}

#[test]
fn what_is_said_twice_counts_once() {
    let mut world = World::default();
    world.plain_host(1, 1);
    world.plain_host(1, 1);
    world.plain_task(1, 1);
    world.plain_task(1, 1);
    world.plain_task(2, 1);
    assert_eq!(world.answer(), [(1, 1)]);
}

/// As large as a round gets: far below a second; the bound is for a busy machine.
#[test]
fn a_round_of_512_heads_over_10_000_daemons() {
    let mut world = World::default();
    for id in 0..10_000 {
        let label = format!("pool-{}", id % 100);
        world.host(id, 1, card(&["shell", "claude"], &[&label, "linux"], &[URL]), 4);
    }
    for id in 0..512 {
        let labels = [format!("pool-{}", id % 100), "linux".to_owned()];
        world.task(id, 1, id % 64, &Requirements::new("claude", &labels, URL));
    }
    let begun = std::time::Instant::now();
    assert_eq!(world.assign().len(), 512);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

// === Invariants ===

const LABELS: [&str; 3] = ["a", "b", "c"];
const REPOSITORIES: [&str; 3] = [URL, "/srv/one", "/srv/two"];

fn some_of(words: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(words, 0..=words.len())
}

fn any_world() -> impl Strategy<Value = World> {
    let host = (0_u128..12, 1_u128..3, some_of(&LABELS), some_of(&REPOSITORIES), any::<bool>(), 0_u32..3, 0..9_u8);
    let head = (
        (0_u128..30, 1_u128..3, 0_u128..5, -1_i32..2, 0_i64..4),
        (some_of(&LABELS), 0_usize..3),
        prop::collection::vec(0_u128..12, 0..3),
        prop::collection::vec((0_u128..12, -1_i64..2), 0..4),
    );
    let loads = prop::collection::vec((0_u32..3, 0_u32..5), 10);
    (prop::collection::vec(host, 0..8), prop::collection::vec(head, 0..24), loads).prop_map(|(hosts, heads, loads)| {
        let mut world = World::default();
        for (id, of, labels, repositories, any_path, free, odd) in hosts {
            let mut card = Card { any_path, ..card(&["shell"], &labels, &repositories) };
            if odd == 0 {
                card.not_accepting = "no".to_owned();
            }
            world.host(id, of, card, free);
        }
        for ((id, of, inside, priority, age), (labels, repository), near, avoid) in heads {
            let labels: Vec<String> = labels.into_iter().map(str::to_owned).collect();
            let repository = REPOSITORIES[repository];
            // Contracts are of one owner each.
            let head = world.task(id, of, of * 10 + inside % 5, &Requirements::new("shell", &labels, repository));
            head.priority = priority;
            head.created = NOW.before(Duration::from_secs(age.unsigned_abs()));
            head.repository = repository.to_owned();
            head.near = near.into_iter().map(daemon).collect();
            let until = |seconds: i64| Timestamp(NOW.0 + seconds);
            head.avoid = avoid.into_iter().map(|(d, s)| Avoid { daemon: daemon(d), until: until(s) }).collect();
        }
        for (index, (live, concurrency)) in loads.into_iter().enumerate() {
            let index = u128::try_from(index).unwrap();
            world.contracts.insert(contract((index / 5 + 1) * 10 + index % 5), Load { live, concurrency });
        }
        world
    })
}

impl World {
    /// Hosts as `assign` sees them: the first of a name, and only those that take work.
    fn real_hosts(&self) -> HashMap<DaemonId, (OwnerId, &Card, u32)> {
        let mut hosts = HashMap::new();
        for (id, of, card, free) in self.hosts.iter().filter(|(_, _, c, free)| *free > 0 && c.not_accepting.is_empty())
        {
            hosts.entry(*id).or_insert((*of, card, *free));
        }
        hosts
    }
}

proptest! {
    #[test]
    fn invariants(world in any_world()) {
        let assignments = world.assign();
        let hosts = world.real_hosts();
        let mut free: HashMap<DaemonId, u32> = hosts.iter().map(|(id, (_, _, free))| (*id, *free)).collect();
        let mut loads = world.contracts.clone();
        let mut done = HashSet::new();
        for assignment in &assignments {
            let head = &world.heads[assignment.head];
            prop_assert_eq!(head.task, assignment.task);
            prop_assert!(done.insert(head.task), "a task twice");
            let (of, card, _) = hosts[&assignment.daemon];
            prop_assert_eq!(of, head.owner, "a foreign daemon");
            prop_assert!(world.classes[&head.class].lacks(card).is_empty(), "a daemon that lacks something");
            let load = loads.get_mut(&head.contract).unwrap();
            prop_assert!(load.room() > 0, "over the concurrency");
            load.live += 1;

            // Soft avoidance: an avoided daemon only where no other has a free slot.
            let avoided = |d: DaemonId| head.avoid.iter().any(|a| a.daemon == d && a.until > NOW);
            let fits = |d: DaemonId| {
                let (of, card, _) = hosts[&d];
                of == head.owner && world.classes[&head.class].fits(card)
            };
            let better = free.iter().any(|(d, left)| *left > 0 && fits(*d) && !avoided(*d));
            prop_assert!(!avoided(assignment.daemon) || !better, "an avoided daemon too early");

            let left = free.get_mut(&assignment.daemon).unwrap();
            prop_assert!(*left > 0, "over the slots");
            *left -= 1;
        }
        // Work-conserving.
        let mut seen = HashSet::new();
        for head in world.heads.iter().filter(|head| seen.insert(head.task) && !done.contains(&head.task)) {
            let room = loads[&head.contract].room() > 0;
            let slot = free.iter().any(|(d, left)| {
                *left > 0 && hosts[d].0 == head.owner && world.classes[&head.class].fits(hosts[d].1)
            });
            prop_assert!(!(room && slot), "{} was left over", head.task);
        }
    }

    /// The order of the input means nothing, as long as no task or daemon is named twice.
    #[test]
    fn the_order_of_the_input_means_nothing(mut world in any_world()) {
        let mut seen = HashSet::new();
        world.heads.retain(|head| seen.insert(head.task));
        let mut seen = HashSet::new();
        world.hosts.retain(|host| seen.insert(host.0));
        let forward = world.answer();
        world.heads.reverse();
        world.hosts.reverse();
        prop_assert_eq!(forward, world.answer());
    }

    /// `fits` and `lacks` are one rule.
    #[test]
    fn a_daemon_fits_when_it_lacks_nothing(world in any_world()) {
        for needs in world.classes.values() {
            for (_, _, card, _) in &world.hosts {
                prop_assert_eq!(needs.fits(card), needs.lacks(card).is_empty());
            }
        }
    }
}

#[test]
fn places_go_to_contracts_that_run_the_fewest() {
    let given = |loads: &[(u32, u32)], room: u32| -> Vec<u32> {
        let load = |&(live, concurrency): &(u32, u32)| Load { live, concurrency };
        let loads: BTreeMap<_, _> = (1..).map(contract).zip(loads.iter().map(load)).collect();
        let shares = shares(&loads, room);
        loads.keys().map(|id| shares[id]).collect()
    };
    assert_eq!(given(&[(0, 100); 4], 4), [1, 1, 1, 1]);
    assert_eq!(given(&[(0, 100), (3, 100)], 5), [4, 1]);
    assert_eq!(given(&[(0, 2), (5, 100)], 10), [2, 8], "what one may not have is another's");
    assert_eq!(given(&[(0, 2), (3, 4)], 100), [2, 1], "no more than they may have");
    assert_eq!(given(&[(7, 7), (0, 100)], 3), [0, 3]);
    // One more than fits evenly: whose turn it is depends on the age of tasks, so each may be given it.
    assert_eq!(given(&[(0, 100); 3], 4), [2, 2, 2]);
    assert!(given(&[], 4).is_empty());
}

proptest! {
    /// With a few heads of each contract, and twice as many of those that run dry, the same is decided as with all of them.
    #[test]
    fn a_share_of_the_heads_decides_the_same(
        contracts in prop::collection::vec((0_u32..6, 0_u32..12, prop::collection::vec(0_i32..3, 0..12)), 1..7),
        free in 1_u32..20,
    ) {
        let mut all = World::default();
        all.plain_host(1, free);
        let mut id = 0;
        for (n, (live, places, priorities)) in (1..).zip(&contracts) {
            for priority in priorities {
                id += 1;
                all.plain_task(id, n).priority = *priority;
            }
            all.contracts.insert(contract(n), Load { live: *live, concurrency: live + places });
        }
        let loads: BTreeMap<_, _> = all.contracts.iter().map(|(id, load)| (*id, *load)).collect();
        let shares = shares(&loads, free);
        let mut limits: Vec<u32> = loads.keys().map(|id| heads_wanted(shares[id], loads.len())).collect();
        let decided = loop {
            let (contracts, classes) = (all.contracts.clone(), all.classes.clone());
            let mut some = World { contracts, classes, ..World::default() };
            some.plain_host(1, free);
            let mut lanes: Vec<Option<Vec<TaskId>>> = Vec::new();
            for ((id, load), limit) in loads.iter().zip(&limits) {
                let mut heads: Vec<Head> = all.heads.iter().filter(|head| head.contract == *id).cloned().collect();
                heads.sort_by_key(|head| (-head.priority, head.task));
                heads.truncate(usize::try_from(*limit).unwrap());
                let may_have_more = *limit < load.room().min(free) && heads.len() >= usize::try_from(*limit).unwrap();
                lanes.push(may_have_more.then(|| heads.iter().map(|head| head.task).collect()));
                some.heads.extend(heads);
            }
            let dry = run_dry(lanes.iter().map(Option::as_deref), &some.assign());
            if dry.is_empty() {
                break some.order();
            }
            dry.into_iter().for_each(|at| limits[at] *= 2);
        };
        prop_assert_eq!(decided, all.order());
    }
}
