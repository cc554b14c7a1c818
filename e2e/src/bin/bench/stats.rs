//! Medians and the like.

use std::collections::BTreeMap;

use super::run::Sample;

/// What a set of samples comes to, milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) median: f64,
    pub(crate) p95: f64,
    /// Mean CPU time: the kernel counts some of it by its tick, so that one
    /// process's figure is coarse.
    pub(crate) cpu: f64,
}

/// Of one part's samples of a chain and verb; none where there are none.
pub(crate) fn summary(samples: &[Sample], part: &str, chain: &str, verb: &str) -> Option<Summary> {
    let of = |s: &&Sample| s.part == part && s.chain == chain && s.verb == verb;
    let chosen: Vec<&Sample> = samples.iter().filter(of).collect();
    let walls: Vec<f64> = chosen.iter().map(|sample| sample.wall()).collect();
    let cpu = chosen.iter().map(|sample| sample.cpu).sum::<f64>() / chosen.len().max(1) as f64;
    Some(Summary {
        count: walls.len(),
        median: quantile(&walls, 0.5)?,
        p95: quantile(&walls, 0.95)?,
        cpu,
    })
}

/// Medians and 95th percentiles of each plugin of a chain, milliseconds.
pub(crate) fn by_plugin(
    samples: &[Sample],
    part: &str,
    chain: &str,
    verb: &str,
) -> BTreeMap<String, (f64, f64)> {
    let mut walls: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for sample in samples.iter().filter(|s| s.part == part && s.chain == chain && s.verb == verb) {
        for (plugin, wall) in &sample.plugins {
            walls.entry(plugin.clone()).or_default().push(*wall);
        }
    }
    let quantiles = |walls: Vec<f64>| Some((quantile(&walls, 0.5)?, quantile(&walls, 0.95)?));
    walls.into_iter().filter_map(|(plugin, walls)| Some((plugin, quantiles(walls)?))).collect()
}

/// The value below which a `share` of all lies, between neighbours where it falls
/// between two.
pub(crate) fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * sorted.len().checked_sub(1)? as f64;
    let low = sorted.get(at.floor() as usize)?;
    let high = sorted.get(at.ceil() as usize)?;
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.5), Some(2.5));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
