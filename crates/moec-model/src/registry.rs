//! What the names in a file can mean: a value, so that a program or a test can build any environment.

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::data_sets::{DATA_SETS, DataSet};
use crate::losses::{BalanceLoss, LOSSES};
use crate::router::RoutingStrategy;
use crate::routers::{
    Base, DSelectK, ExpertChoice, GShard, Hash, NoisyTopK, SigmoidTopK, Smear, SoftMoe, SoftmaxTopK, Switch,
};

/// The routing strategies, balance losses and data sets that a file can name.
#[derive(Clone)]
pub struct Registry {
    routers: IndexMap<String, Arc<dyn RoutingStrategy>>,
    losses: IndexMap<&'static str, BalanceLoss>,
    data_sets: IndexMap<&'static str, DataSet>,
}

impl Registry {
    /// The built-in strategies, losses and data sets.
    pub fn with_builtins() -> Self {
        let mut registry = Registry { routers: IndexMap::new(), losses: IndexMap::new(), data_sets: IndexMap::new() };
        registry = registry
            .router(SoftmaxTopK)
            .router(NoisyTopK)
            .router(Switch)
            .router(GShard)
            .router(SigmoidTopK)
            .router(DSelectK)
            .router(Hash)
            .router(Base)
            .router(ExpertChoice)
            .router(SoftMoe)
            .router(Smear);
        for loss in LOSSES {
            registry = registry.loss(loss);
        }
        for data_set in DATA_SETS {
            registry = registry.data_set(data_set);
        }
        registry
    }

    /// Adds a strategy; one of the same name is replaced.
    #[must_use]
    pub fn router(self, strategy: impl RoutingStrategy + 'static) -> Self {
        self.strategy(Arc::new(strategy))
    }

    /// As [`Self::router`], for a strategy that is shared.
    pub(crate) fn strategy(mut self, strategy: Arc<dyn RoutingStrategy>) -> Self {
        self.routers.insert(strategy.name().to_string(), strategy);
        self
    }

    /// Adds a balance loss; one of the same name is replaced.
    #[must_use]
    pub fn loss(mut self, loss: BalanceLoss) -> Self {
        self.losses.insert(loss.name, loss);
        self
    }

    /// Adds a data set; one of the same name is replaced.
    #[must_use]
    pub fn data_set(mut self, data_set: DataSet) -> Self {
        self.data_sets.insert(data_set.name, data_set);
        self
    }

    /// The strategies in order of registration.
    pub fn routers(&self) -> impl Iterator<Item = &Arc<dyn RoutingStrategy>> {
        self.routers.values()
    }

    /// The losses in order of registration.
    pub fn losses(&self) -> impl Iterator<Item = &BalanceLoss> {
        self.losses.values()
    }

    /// The data sets in order of registration.
    pub fn data_sets(&self) -> impl Iterator<Item = &DataSet> {
        self.data_sets.values()
    }

    /// The data set of that name.
    pub fn find_data_set(&self, name: &str) -> Option<&DataSet> {
        self.data_sets.get(name)
    }

    /// The strategy of that name.
    pub fn find_router(&self, name: &str) -> Option<&Arc<dyn RoutingStrategy>> {
        self.routers.get(name)
    }

    /// The loss of that name.
    pub fn find_loss(&self, name: &str) -> Option<&BalanceLoss> {
        self.losses.get(name)
    }
}

impl fmt::Debug for Registry {
    /// The names in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routers: Vec<&String> = self.routers.keys().collect();
        let losses: Vec<&&str> = self.losses.keys().collect();
        f.debug_struct("Registry").field("routers", &routers).field("losses", &losses).finish()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::with_builtins()
    }
}
