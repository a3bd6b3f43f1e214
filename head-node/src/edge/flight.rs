//! Arrow Flight for any client: which datasets there are (`ListFlights`, `GetFlightInfo`, `GetSchema`), reads (`DoGet`, passed to
//! [`doget`]), publishes (`DoPut`, passed to [`put`]), and one action.
//!
//! A descriptor is a path of one part, the name of a dataset (a read of all of it), or a command, which is a ticket (protobuf or JSON).
//! `FlightInfo` has one endpoint, and its ticket is read at this address: heads do not send clients elsewhere, a client's own placement
//! does.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
    flight_descriptor::DescriptorType,
    flight_service_server::{FlightService, FlightServiceServer},
};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::{ArrowError, SchemaRef};
use futures::{StreamExt, stream, stream::BoxStream};
use tonic::{Request, Response, Status, Streaming, body::Body, server::NamedService};
use tower::Service;
use trellis_fabric::channel::MESSAGE_BYTES_MAX;
use trellis_proto::{Code, DatasetName, Error, SeriesQuery, Symbol, Symbols, ticket};

use super::{doget, put};
use crate::{answer::field_positions, error, head::HeadNode, held::Dataset};

/// Name of the action that lists the symbols of a dataset.
const SYMBOLS: &str = "symbols";

/// The Flight service: `DoGet` by our own HTTP body, the other methods by the generated code.
#[derive(Clone)]
pub(crate) struct ArrowFlight {
    head: Arc<HeadNode>,
    rest: FlightServiceServer<OtherMethods>,
}

impl ArrowFlight {
    pub(crate) fn new(head: Arc<HeadNode>) -> Self {
        let rest = FlightServiceServer::new(OtherMethods { head: head.clone() })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { head, rest }
    }
}

impl NamedService for ArrowFlight {
    const NAME: &'static str = <FlightServiceServer<OtherMethods> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for ArrowFlight {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // our own body and the generated code are always ready
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() == doget::PATH {
            let head = self.head.clone();
            return Box::pin(async move { Ok(doget::serve(head, request).await) });
        }
        let request = if request.uri().path() == put::PATH { put::watched(request) } else { request };
        self.rest.call(request)
    }
}

/// The methods of Flight that are not `DoGet`.
pub(crate) struct OtherMethods {
    head: Arc<HeadNode>,
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;

fn unimplemented<T>(what: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("a Trellis head has no {what}")))
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Code::InvalidRequest, why)
}

fn encoding(failed: &ArrowError) -> Error {
    Error::new(Code::Internal, format!("a schema cannot be encoded: {failed}"))
}

impl OtherMethods {
    /// The dataset and the query of a descriptor.
    async fn find(&self, descriptor: &FlightDescriptor) -> Result<(Arc<Dataset>, SeriesQuery), Error> {
        if self.head.is_draining() {
            return Err(error::draining(self.head.id()));
        }
        let query = match (descriptor.r#type(), descriptor.path.as_slice()) {
            (DescriptorType::Cmd, _) => ticket::decode(&descriptor.cmd)?,
            (DescriptorType::Path, [dataset]) => SeriesQuery::new(DatasetName::new(dataset)?, Symbols::All),
            _ => {
                return Err(invalid("the descriptor is neither a path nor a command")
                    .hint("use a path of one part, the dataset, or a ticket as the command"));
            }
        };
        let dataset = self.head.engine().dataset(&query.dataset).await?;
        Ok((dataset, query))
    }

    fn schema(dataset: &Dataset, query: &SeriesQuery) -> Result<SchemaRef, Error> {
        let fields = field_positions(&dataset.spec, &query.fields)?;
        Ok(dataset.spec.answer_schema(&fields, query.known_at))
    }

    fn info(
        dataset: &Dataset,
        query: &SeriesQuery,
        descriptor: FlightDescriptor,
    ) -> Result<FlightInfo, Error> {
        let schema = Self::schema(dataset, query)?;
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket::encode(query)));
        Ok(FlightInfo::new()
            .try_with_schema(&schema)
            .map_err(|failed| encoding(&failed))?
            .with_descriptor(descriptor)
            .with_endpoint(endpoint)
            .with_ordered(true))
    }
}

#[tonic::async_trait]
impl FlightService for OtherMethods {
    type HandshakeStream = Stream<HandshakeResponse>;
    type ListFlightsStream = Stream<FlightInfo>;
    type DoGetStream = Stream<FlightData>;
    type DoPutStream = Stream<PutResult>;
    type DoExchangeStream = Stream<FlightData>;
    type DoActionStream = Stream<arrow_flight::Result>;
    type ListActionsStream = Stream<ActionType>;

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        unimplemented("handshake: connections need none")
    }

    async fn list_flights(
        &self,
        request: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        let prefix = String::from_utf8(request.into_inner().expression.into()).map_err(|_| {
            invalid("the criteria are not text").hint("leave them empty, or give the beginning of the names")
        })?;
        let mut flights = Vec::new();
        for dataset in self.head.engine().datasets().await?.iter() {
            let name = dataset.spec.dataset.clone();
            if name.as_str().starts_with(&prefix) {
                let descriptor = FlightDescriptor::new_path(vec![name.to_string()]);
                flights.push(Self::info(dataset, &SeriesQuery::new(name, Symbols::All), descriptor)?);
            }
        }
        Ok(Response::new(stream::iter(flights.into_iter().map(Ok)).boxed()))
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let descriptor = request.into_inner();
        let (dataset, query) = self.find(&descriptor).await?;
        // a query that DoGet would refuse is refused here, too
        self.head.plan(&dataset, &query).await?;
        Ok(Response::new(Self::info(&dataset, &query, descriptor)?))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        unimplemented("PollFlightInfo: every answer is ready to be read")
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let (dataset, query) = self.find(&request.into_inner()).await?;
        let schema = Self::schema(&dataset, &query)?;
        let encoded = SchemaAsIpc::new(&schema, &IpcWriteOptions::default()).try_into();
        Ok(Response::new(encoded.map_err(|failed| encoding(&failed))?))
    }

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        // never called: `ArrowFlight` answers DoGet itself
        unimplemented("second DoGet")
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let result = put::relay(&self.head, request).await?;
        Ok(Response::new(stream::iter([Ok(result)]).boxed()))
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        unimplemented("DoExchange")
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let action = request.into_inner();
        if action.r#type != SYMBOLS {
            return Err(invalid(format!("there is no action {:?}", action.r#type))
                .hint("ListActions names them")
                .into());
        }
        let name = std::str::from_utf8(&action.body).map_err(|_| invalid("the body is no dataset's name"))?;
        let name = DatasetName::new(name)?;
        self.head.engine().dataset(&name).await?;
        let symbols = self.head.engine().symbols(&name).await?;
        let results = (0..symbols.len()).map(move |i| {
            let symbol: &Symbol = &symbols[i];
            Ok(arrow_flight::Result { body: symbol.as_str().to_owned().into() })
        });
        Ok(Response::new(stream::iter(results).boxed()))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let symbols = ActionType {
            r#type: SYMBOLS.to_owned(),
            description: "The symbols of a dataset, sorted, a result each; the body is the dataset's name."
                .to_owned(),
        };
        Ok(Response::new(stream::iter([Ok(symbols)]).boxed()))
    }
}
