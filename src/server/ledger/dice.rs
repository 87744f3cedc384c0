//! Where a batch gets new ids and chance from. The domain takes both as arguments; here is the one place that makes them, so
//! that a simulation can make them from a seed.

use uuid::Uuid;

/// New ids and chance.
#[derive(Debug, Default)]
pub(super) enum Dice {
    /// The system's.
    #[default]
    System,
    /// The same each time for the same seed. Ordered ids count.
    #[cfg(test)]
    Seeded { rng: rand::rngs::SmallRng, ordered: u64 },
}

impl Dice {
    /// A new id, which sorts after those made before.
    pub(super) fn ordered_id(&mut self) -> Uuid {
        match self {
            Self::System => Uuid::now_v7(),
            #[cfg(test)]
            Self::Seeded { rng, ordered } => {
                *ordered += 1;
                uuid::Builder::from_unix_timestamp_millis(*ordered, &rand::RngExt::random(rng)).into_uuid()
            }
        }
    }

    /// From 0 to 1.
    pub(super) fn fraction(&mut self) -> f64 {
        match self {
            Self::System => rand::random(),
            #[cfg(test)]
            Self::Seeded { rng, .. } => rand::RngExt::random(rng),
        }
    }
}
