//! The middleware around the handlers, from the outside in: [`request_id`], [`observe`], and then,
//! by route, [`authenticate`] or [`admit`]. `http::routes` says which route has which.
//!
//! Request ids are tower-http's `SetRequestId` and `PropagateRequestId`. Which ids are acceptable
//! is our rule, and those layers accept any: [`request_id`] removes an id that breaks the rule
//! first.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use tower_http::request_id::{MakeRequestId, RequestId};
use uuid::Uuid;

use super::Ingress;
use super::admission::InFlight;
use super::record::{Record, Recorded};
use super::request_context::{REQUEST_ID, RequestContext, acceptable};
use crate::store::StoreError;

/// The longest request id that a client may choose, in bytes.
const REQUEST_ID_LENGTH: usize = 128;

/// Why a request is refused before its handler sees it.
#[derive(Debug)]
pub enum Refusal {
    /// The request has no bearer token.
    MissingKey,
    /// The token belongs to no key, or to a revoked one.
    UnknownKey,
    /// The store was asked for the key and failed.
    Store(StoreError),
    /// As many requests as are allowed are in flight.
    Busy {
        /// How many requests are allowed.
        limit: u32,
    },
    /// As many requests as one tenant is allowed are in flight.
    Share {
        /// How many requests a tenant is allowed.
        limit: u32,
    },
    /// The gateway is shutting down.
    Draining,
}

/// Makes the id of a request whose client gave none: a UUID v7 in 32 hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _request: &http::Request<B>) -> Option<RequestId> {
        let id = Uuid::now_v7().simple().to_string();
        HeaderValue::from_str(&id).ok().map(RequestId::new)
    }
}

/// Removes an `x-request-id` that is not 1 to 128 visible ASCII characters, so that the next layer
/// makes a new one.
pub async fn request_id(mut request: Request) -> Request {
    if acceptable(request.headers(), &REQUEST_ID, REQUEST_ID_LENGTH).is_none() {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

/// Reads the request's context, counts and logs the request when it has ended, and closes
/// connections while the gateway drains.
pub async fn observe(State(ingress): State<Ingress>, mut request: Request, next: Next) -> Response {
    let mut record = Record::new(ingress.metrics.clone(), &request);
    let response = match RequestContext::read(request.version(), request.headers()) {
        Ok(context) => {
            request.extensions_mut().insert(context);
            next.run(request).await
        }
        Err(invalid) => invalid.into_response(),
    };
    let (mut head, body) = response.into_parts();
    if ingress.shutdown.is_draining() {
        let close = HeaderValue::from_static("close");
        head.headers.insert(header::CONNECTION, close);
    }
    record.answered(head.status, head.extensions.remove::<InFlight>());
    Response::from_parts(head, Body::new(Recorded::new(body, record)))
}

/// Guards a route that needs a key and only reads. It is served while the gateway drains, and the
/// drain waits for it.
///
/// # Errors
/// [`Refusal::MissingKey`], [`Refusal::UnknownKey`] and [`Refusal::Store`].
pub async fn authenticate(
    State(ingress): State<Ingress>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if let Err(invalid) = RequestContext::checked(request.extensions()) {
        return Ok(invalid.into_response());
    }
    let reading = ingress.admission.read();
    let tenant = ingress.keys.tenant(request.headers()).await?;
    request.extensions_mut().insert(tenant);
    let mut response = next.run(request).await;
    response.extensions_mut().insert(reading);
    Ok(response)
}

/// Guards a route that does work: it needs a key, and a permit that is held until the response has
/// ended. The body is read before the permit is taken, so that clients that send slowly hold none.
/// At the drain deadline the handler is dropped with everything that it does.
///
/// # Errors
/// Every [`Refusal`].
pub async fn admit(
    State(ingress): State<Ingress>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if let Err(invalid) = RequestContext::checked(request.extensions()) {
        return Ok(invalid.into_response());
    }
    let tenant = ingress.keys.tenant(request.headers()).await?;
    if ingress.shutdown.is_draining() {
        return Err(Refusal::Draining);
    }
    ingress.admission.check()?;
    let read = tokio::select! {
        read = ingress.bodies.read(request) => read,
        () = ingress.shutdown.draining() => return Err(Refusal::Draining),
    };
    let mut request = match read {
        Ok(request) => request,
        Err(refused) => return Ok(refused.into_response()),
    };
    let of_tenant = Some(&tenant).filter(|_| ingress.keys.are_required());
    let in_flight = ingress.admission.enter(of_tenant)?;
    request.extensions_mut().insert(tenant);
    let cut = ingress.shutdown.cut_token();
    let mut response = tokio::select! {
        response = next.run(request) => response,
        () = cut.cancelled() => Refusal::Draining.into_response(),
    };
    response.extensions_mut().insert(in_flight);
    Ok(response)
}
