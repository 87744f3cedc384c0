//! Graphs of places in a list: an order, cycles, and what hangs together. Nothing recurses, everything is near-linear.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use super::MAX_CYCLES;

/// Puts `count` things in an order in which each comes after what it depends on, and otherwise as they were: `edges` are
/// (dependent, dependency). The error is the cycles, each with its first thing again at the end.
pub fn order(count: usize, edges: &[(usize, usize)]) -> Result<Vec<usize>, Vec<Vec<usize>>> {
    let mut unmet = vec![0_usize; count];
    let reversed: Vec<(usize, usize)> = edges.iter().map(|&(dependent, dependency)| (dependency, dependent)).collect();
    for &(dependent, _) in edges {
        unmet[dependent] += 1;
    }
    let dependents = Adjacency::new(count, &reversed);
    let mut ready: BinaryHeap<Reverse<usize>> = (0..count).filter(|&place| unmet[place] == 0).map(Reverse).collect();
    let mut ordered = Vec::with_capacity(count);
    while let Some(Reverse(place)) = ready.pop() {
        ordered.push(place);
        for &dependent in dependents.of(place) {
            unmet[dependent] -= 1;
            if unmet[dependent] == 0 {
                ready.push(Reverse(dependent));
            }
        }
    }
    if ordered.len() == count { Ok(ordered) } else { Err(cycles(count, edges)) }
}

/// For each place the number of its component: two have the same exactly if each leads to the other.
pub fn components(count: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let forward = Adjacency::new(count, edges);
    let backward: Vec<(usize, usize)> = edges.iter().map(|&(from, to)| (to, from)).collect();
    let backward = Adjacency::new(count, &backward);

    // Kosaraju: places in the order in which a walk leaves them, then, last left first, what leads to each.
    let mut left = Vec::with_capacity(count);
    let mut seen = vec![false; count];
    let mut stack: Vec<(usize, usize)> = Vec::new();
    for start in 0..count {
        if std::mem::replace(&mut seen[start], true) {
            continue;
        }
        stack.push((start, 0));
        while let Some((place, at)) = stack.last_mut() {
            match forward.of(*place).get(*at) {
                Some(&next) => {
                    *at += 1;
                    if !std::mem::replace(&mut seen[next], true) {
                        stack.push((next, 0));
                    }
                }
                None => {
                    left.push(*place);
                    stack.pop();
                }
            }
        }
    }
    let mut component = vec![usize::MAX; count];
    let mut stack = Vec::new();
    for start in left.into_iter().rev() {
        if component[start] != usize::MAX {
            continue;
        }
        component[start] = start;
        stack.push(start);
        while let Some(place) = stack.pop() {
            for &next in backward.of(place) {
                if component[next] == usize::MAX {
                    component[next] = start;
                    stack.push(next);
                }
            }
        }
    }
    component
}

/// Cycles of a graph, at most [`MAX_CYCLES`]: for each edge that closes one in a depth-first walk, the shortest cycle through
/// it, beginning with its smallest place and ending with it again. Empty exactly if there is none.
pub(super) fn cycles(count: usize, edges: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let graph = Adjacency::new(count, edges);
    let mut found: Vec<Vec<usize>> = Vec::new();
    let mut before = vec![usize::MAX; count];
    for (from, to) in closing_edges(count, &graph) {
        let mut cycle = shortest(&graph, to, from, &mut before);
        let smallest = cycle.iter().enumerate().min_by_key(|(_, place)| **place).map_or(0, |(at, _)| at);
        cycle.rotate_left(smallest);
        cycle.push(cycle[0]);
        if !found.contains(&cycle) {
            found.push(cycle);
        }
    }
    found
}

/// Edges that close a cycle in a depth-first walk: without them there is none. At most [`MAX_CYCLES`].
fn closing_edges(count: usize, graph: &Adjacency) -> Vec<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Closed,
    }
    let mut marks = vec![Mark::New; count];
    let mut closing = Vec::new();
    let mut stack: Vec<(usize, usize)> = Vec::new();
    for start in 0..count {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        stack.push((start, 0));
        while let Some((place, at)) = stack.last_mut() {
            let place = *place;
            let Some(&next) = graph.of(place).get(*at) else {
                marks[place] = Mark::Closed;
                stack.pop();
                continue;
            };
            *at += 1;
            match marks[next] {
                Mark::New => {
                    marks[next] = Mark::Open;
                    stack.push((next, 0));
                }
                Mark::Open => {
                    closing.push((place, next));
                    if closing.len() == MAX_CYCLES {
                        return closing;
                    }
                }
                Mark::Closed => {}
            }
        }
    }
    closing
}

/// A shortest way from one place to another that it leads to; `before` is scratch space as long as the graph.
fn shortest(graph: &Adjacency, from: usize, to: usize, before: &mut [usize]) -> Vec<usize> {
    before.fill(usize::MAX);
    before[from] = from;
    let mut queue = VecDeque::from([from]);
    while let Some(place) = queue.pop_front() {
        if place == to {
            break;
        }
        for &next in graph.of(place) {
            if before[next] == usize::MAX {
                before[next] = place;
                queue.push_back(next);
            }
        }
    }
    let mut way = vec![to];
    let mut at = to;
    while at != from && before[at] != usize::MAX {
        at = before[at];
        way.push(at);
    }
    way.reverse();
    way
}

/// Edges of a graph by where they start.
struct Adjacency {
    starts: Vec<usize>,
    ends: Vec<usize>,
}

impl Adjacency {
    fn new(count: usize, edges: &[(usize, usize)]) -> Self {
        let mut starts = vec![0; count + 1];
        for &(from, _) in edges {
            starts[from + 1] += 1;
        }
        for place in 0..count {
            starts[place + 1] += starts[place];
        }
        let mut ends = vec![0; edges.len()];
        let mut at = starts.clone();
        for &(from, to) in edges {
            ends[at[from]] = to;
            at[from] += 1;
        }
        Self { starts, ends }
    }

    fn of(&self, place: usize) -> &[usize] {
        &self.ends[self.starts[place]..self.starts[place + 1]]
    }
}
