//! The aliases of the gateway: for each, its candidates in order, with everything that guards
//! them.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gauntlet_harness::spec::{ProviderSpec, Spec, Timeouts};
use gauntlet_harness::subject::{Deployment, TargetError};

use super::breaker::{Breaker, Budget, Bulkhead};
use super::protocol::Protocol;
use super::upstream::Pool;
use crate::defect::Defect;

/// A configured provider.
pub(super) struct Provider {
    pub spec: ProviderSpec,
    pub protocol: Protocol,
    pub base_url: String,
    pub bulkhead: Bulkhead,
    pub budget: Budget,
    pub pool: Arc<Pool>,
    /// For [`Defect::NeverForgives`].
    pub gone: AtomicBool,
    /// For [`Defect::TrustsPooledConnections`]: the connections that are kept.
    pub kept: Mutex<Vec<TcpStream>>,
}

/// [`Defect::TrustsPooledConnections`]; all others make a connection for each attempt.
impl Provider {
    /// Keeps one more connection, beside those of the attempts.
    pub(super) fn keeps_a_connection(&self) {
        let address = self.base_url.split('/').nth(2).unwrap_or_default();
        let kept = TcpStream::connect(address).and_then(|stream| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        self.kept().extend(kept);
    }

    /// Takes a kept connection, if there is one, and returns whether its peer has closed it.
    pub(super) fn uses_a_dead_connection(&self) -> bool {
        let Some(kept) = self.kept().pop() else {
            return false;
        };
        match kept.peek(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One candidate of an alias.
pub(super) struct CandidateState {
    pub provider: Arc<Provider>,
    pub model: String,
    pub breaker: Arc<Breaker>,
    pub connect: Duration,
    pub first_token: Duration,
    pub idle: Duration,
}

/// An alias.
pub(super) struct Route {
    pub alias: String,
    pub candidates: Vec<Arc<CandidateState>>,
    /// The deadline of a request, over all attempts and candidates.
    pub total: Duration,
    /// Kept for each later candidate.
    pub reserve: Duration,
}

/// Every alias, and every breaker by provider and model, in the order of the specification.
pub(super) struct Routes {
    pub providers: Vec<Arc<Provider>>,
    pub routes: Vec<Route>,
    pub breakers: Vec<(String, String, Arc<Breaker>)>,
}

impl Routes {
    /// From the specification and the addresses of its providers.
    pub(super) fn of(deployment: &Deployment, defect: Option<Defect>) -> Result<Self, TargetError> {
        let spec = &deployment.spec;
        let mut providers = Vec::new();
        for provider in &spec.providers {
            let base_url = deployment.endpoints.get(&provider.name).cloned();
            let base_url = base_url.ok_or_else(|| {
                TargetError::Definition(format!("the provider {} has no address", provider.name))
            })?;
            let bulkhead = Bulkhead::new(provider.max_in_flight, defect);
            let budget = Budget::new(spec.retry);
            let protocol = Protocol::named(provider.protocol.name()).ok_or_else(|| {
                TargetError::Definition(format!(
                    "the reference gateway does not speak {}, the protocol of {}",
                    provider.protocol, provider.name
                ))
            })?;
            providers.push(Arc::new(Provider {
                spec: provider.clone(),
                protocol,
                base_url,
                bulkhead,
                budget,
                pool: Arc::default(),
                gone: AtomicBool::new(false),
                kept: Mutex::default(),
            }));
        }
        let mut this = Self {
            providers,
            routes: Vec::new(),
            breakers: Vec::new(),
        };
        for model in &spec.models {
            let mut candidates = Vec::new();
            for candidate in &model.candidates {
                let provider = this
                    .providers
                    .iter()
                    .find(|provider| provider.spec.name == candidate.provider)
                    .cloned();
                let provider = provider.ok_or_else(|| {
                    TargetError::Definition(format!(
                        "{} names no provider: {}",
                        model.alias, candidate.provider
                    ))
                })?;
                let timeouts = resolve(spec, model.timeouts, &provider.spec, defect);
                let breaker = this.breaker(spec, &candidate.provider, &candidate.model, defect);
                let ms = |value: Option<u64>, shortened: Defect| {
                    Duration::from_millis(value.unwrap_or(1_000))
                        / if defect == Some(shortened) { 10 } else { 1 }
                };
                let connect = ms(timeouts.connect_ms, Defect::ConnectTimeoutTooShort);
                let first_token = ms(timeouts.first_token_ms, Defect::FirstTokenTimeoutTooShort);
                let idle = ms(timeouts.idle_ms, Defect::IdleTimeoutTooShort);
                candidates.push(Arc::new(CandidateState {
                    provider,
                    model: candidate.model.clone(),
                    breaker,
                    connect,
                    first_token,
                    idle,
                }));
            }
            let first = candidates.first().map(|candidate| &candidate.provider.spec);
            let total = first
                .and_then(|provider| resolve(spec, model.timeouts, provider, defect).total_ms)
                .or(spec.timeouts.total_ms);
            let total = Duration::from_millis(total.unwrap_or(4_000))
                / if defect == Some(Defect::GivesUpEarly) {
                    10
                } else {
                    1
                };
            let reserve = total / (2 * u32::try_from(candidates.len()).unwrap_or(u32::MAX)).max(1);
            this.routes.push(Route {
                alias: model.alias.clone(),
                candidates,
                total,
                reserve,
            });
        }
        Ok(this)
    }

    pub(super) fn find(&self, alias: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.alias == alias)
    }

    /// One breaker for each provider and model (BRKR-05).
    fn breaker(
        &mut self,
        spec: &Spec,
        provider: &str,
        model: &str,
        defect: Option<Defect>,
    ) -> Arc<Breaker> {
        let by_model = defect == Some(Defect::OneBreakerForEachModel);
        let same =
            |(p, m, _): &&(String, String, Arc<Breaker>)| m == model && (p == provider || by_model);
        if let Some((_, _, breaker)) = self.breakers.iter().find(same) {
            return breaker.clone();
        }
        let shared = self
            .breakers
            .first()
            .filter(|_| defect == Some(Defect::OneBreakerForAll))
            .map(|(_, _, breaker)| breaker.clone());
        let breaker = shared.unwrap_or_else(|| Breaker::new(spec.breaker, defect));
        self.breakers
            .push((provider.to_owned(), model.to_owned(), breaker.clone()));
        breaker
    }
}

/// Model over provider over default (TIME-07).
fn resolve(
    spec: &Spec,
    model: Timeouts,
    provider: &ProviderSpec,
    defect: Option<Defect>,
) -> Timeouts {
    let mut model = model;
    let ignored = match defect {
        Some(Defect::IgnoresOwnConnect) => Some(&mut model.connect_ms),
        Some(Defect::IgnoresOwnFirstToken) => Some(&mut model.first_token_ms),
        Some(Defect::IgnoresOwnIdle) => Some(&mut model.idle_ms),
        Some(Defect::IgnoresOwnTotal) => Some(&mut model.total_ms),
        _ => None,
    };
    if let Some(ignored) = ignored {
        *ignored = None;
    }
    let of_provider = if defect == Some(Defect::IgnoresProvidersTimeouts) {
        Timeouts::default()
    } else {
        provider.timeouts
    };
    let levels = [model, of_provider, spec.timeouts];
    let pick = |field: fn(&Timeouts) -> Option<u64>| levels.iter().find_map(field);
    Timeouts {
        connect_ms: pick(|timeouts| timeouts.connect_ms),
        first_token_ms: pick(|timeouts| timeouts.first_token_ms),
        idle_ms: pick(|timeouts| timeouts.idle_ms),
        total_ms: pick(|timeouts| timeouts.total_ms),
    }
}
