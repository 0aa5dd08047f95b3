//! The values that labels can have.
//!
//! Always true here: each label has a fixed, small set of values, and whatever a client sends is one of them; the number of series is
//! therefore bounded by this file, whatever clients do.

/// A label whose values are known in advance.
pub trait Label: Copy + 'static {
    /// All values, in the order of their places.
    const ALL: &'static [Self];

    /// The value's place among them.
    fn place(self) -> usize;

    /// How it is written.
    fn text(self) -> &'static str;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$value_doc])* $value,)* }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value,)*];

            fn place(self) -> usize {
                self as usize
            }

            fn text(self) -> &'static str {
                match self { $(Self::$value => $text,)* }
            }
        }
    };
}

label! {
    /// How a client speaks.
    Protocol {
        /// Remote Execution API, ByteStream, health and reflection.
        Grpc = "grpc",
        /// The HTTP cache protocol and the operator's pages.
        Http = "http",
    }
}

label! {
    /// What a request is about.
    Kind {
        /// Blobs.
        Cas = "cas",
        /// Action results.
        Ac = "ac",
        /// Entries under names of a client's own.
        Kv = "kv",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// What a request came to.
    Outcome {
        /// A read found what it asked for.
        Hit = "hit",
        /// A read found nothing.
        Miss = "miss",
        /// It did what was asked, which was no read of one thing.
        Ok = "ok",
        /// The client's mistake.
        ClientError = "client_error",
        /// The server could not: out of room, draining, poisoned, or a defect.
        ServerError = "server_error",
        /// The client went away before the answer's end.
        Cancelled = "cancelled",
    }
}

label! {
    /// What became of one blob among several of one request.
    BlobOutcome {
        /// It was there.
        Hit = "hit",
        /// It was not.
        Miss = "miss",
        /// It is stored, or was there already.
        Stored = "stored",
        /// It was refused, or could not be read or stored.
        Error = "error",
    }
}

label! {
    /// What the credentials of a request came to.
    AuthOutcome {
        /// They are right, and enough.
        Granted = "granted",
        /// There are none, and none are needed.
        Anonymous = "anonymous",
        /// There are none, and some are needed.
        Missing = "missing",
        /// They are wrong.
        Wrong = "wrong",
        /// They are right, and not enough.
        Forbidden = "forbidden",
        /// Too many others were being checked.
        Busy = "busy",
    }
}

label! {
    /// What became of reading the file of users again.
    Reload {
        /// It counts from now on.
        Ok = "ok",
        /// The one from before still does.
        Error = "error",
    }
}

label! {
    /// A method of the HTTP cache protocol.
    Verb {
        /// GET
        Get = "GET",
        /// HEAD
        Head = "HEAD",
        /// PUT
        Put = "PUT",
        /// DELETE
        Delete = "DELETE",
        /// PROPFIND
        Propfind = "PROPFIND",
        /// MKCOL
        Mkcol = "MKCOL",
        /// Any other.
        Other = "other",
    }
}

impl Verb {
    /// The verb of a request.
    pub fn of(method: &http::Method) -> Self {
        Self::ALL.iter().copied().find(|verb| verb.text() == method.as_str()).unwrap_or(Self::Other)
    }
}

label! {
    /// Which part of the HTTP front-end a path belongs to.
    Handler {
        /// `…/cas/`
        Cas = "cas",
        /// `…/ac/`
        Ac = "ac",
        /// `…/kv/`
        Kv = "kv",
        /// `/status`
        Status = "status",
        /// `/metrics`
        Metrics = "metrics",
        /// `/healthz`
        Healthz = "healthz",
        /// `/readyz`
        Readyz = "readyz",
        /// Any other path.
        Other = "other",
    }
}

impl Handler {
    /// What its requests are about.
    pub fn kind(self) -> Kind {
        match self {
            Self::Cas => Kind::Cas,
            Self::Ac => Kind::Ac,
            Self::Kv => Kind::Kv,
            Self::Status | Self::Metrics | Self::Healthz | Self::Readyz | Self::Other => Kind::Other,
        }
    }
}

/// The status of an answer over HTTP: those that the server gives, and one for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(usize);

/// What the log and the metrics say of a client that went away before the answer's end, as some proxies do. It is never sent.
pub const STATUS_CANCELLED: u16 = 499;

const STATUSES: [(u16, &str); 20] = [
    (200, "200"),
    (201, "201"),
    (204, "204"),
    (206, "206"),
    (207, "207"),
    (304, "304"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (413, "413"),
    (415, "415"),
    (416, "416"),
    (STATUS_CANCELLED, "499"),
    (500, "500"),
    (503, "503"),
    (507, "507"),
    (0, "other"),
];

impl Status {
    /// The label of a status.
    pub fn of(status: u16) -> Self {
        Self(STATUSES.iter().position(|(known, _)| *known == status).unwrap_or(STATUSES.len() - 1))
    }
}

impl Label for Status {
    const ALL: &'static [Self] = &{
        let mut all = [Self(0); STATUSES.len()];
        let mut place = 0;
        while place < all.len() {
            all[place] = Self(place);
            place += 1;
        }
        all
    };

    fn place(self) -> usize {
        self.0
    }

    fn text(self) -> &'static str {
        STATUSES.get(self.0).map_or("other", |(_, text)| text)
    }
}

label! {
    /// A status of gRPC, under the names that its own libraries give to their metrics.
    Code {
        /// 0
        Ok = "OK",
        /// 1
        Canceled = "Canceled",
        /// 2, and whatever is none of them.
        Unknown = "Unknown",
        /// 3
        InvalidArgument = "InvalidArgument",
        /// 4
        DeadlineExceeded = "DeadlineExceeded",
        /// 5
        NotFound = "NotFound",
        /// 6
        AlreadyExists = "AlreadyExists",
        /// 7
        PermissionDenied = "PermissionDenied",
        /// 8
        ResourceExhausted = "ResourceExhausted",
        /// 9
        FailedPrecondition = "FailedPrecondition",
        /// 10
        Aborted = "Aborted",
        /// 11
        OutOfRange = "OutOfRange",
        /// 12
        Unimplemented = "Unimplemented",
        /// 13
        Internal = "Internal",
        /// 14
        Unavailable = "Unavailable",
        /// 15
        DataLoss = "DataLoss",
        /// 16
        Unauthenticated = "Unauthenticated",
    }
}

impl Code {
    /// The code of a `grpc-status` header.
    pub fn of(status: &[u8]) -> Self {
        let number = std::str::from_utf8(status).ok().and_then(|text| text.parse::<usize>().ok());
        number.and_then(|number| Self::ALL.get(number)).copied().unwrap_or(Self::Unknown)
    }
}

/// The form of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallType {
    /// One message each way.
    Unary,
    /// Many messages to the server.
    ClientStream,
    /// Many messages from the server.
    ServerStream,
    /// Many both ways.
    Bidi,
}

impl CallType {
    /// How it is written.
    pub fn text(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ClientStream => "client_stream",
            Self::ServerStream => "server_stream",
            Self::Bidi => "bidi_stream",
        }
    }
}

macro_rules! methods {
    ($($name:ident: $service:literal $method:literal $call_type:ident $kind:ident;)*) => {
        /// A gRPC method that is offered, or none of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // the methods say their names
        pub enum Method { $($name,)* Other }

        impl Method {
            /// The method of a path.
            pub fn of(path: &str) -> Self {
                match path {
                    $(concat!("/", $service, "/", $method) => Self::$name,)*
                    _ => Self::Other,
                }
            }

            /// Its service with its package.
            pub fn service(self) -> &'static str {
                match self { $(Self::$name => $service,)* Self::Other => "other" }
            }

            /// Its form.
            pub fn call_type(self) -> CallType {
                match self { $(Self::$name => CallType::$call_type,)* Self::Other => CallType::Unary }
            }

            /// What it is about.
            pub fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* Self::Other => Kind::Other }
            }
        }

        impl Label for Method {
            const ALL: &'static [Self] = &[$(Self::$name,)* Self::Other];

            fn place(self) -> usize {
                self as usize
            }

            fn text(self) -> &'static str {
                match self { $(Self::$name => $method,)* Self::Other => "other" }
            }
        }
    };
}

methods! {
    GetCapabilities: "build.bazel.remote.execution.v2.Capabilities" "GetCapabilities" Unary Other;
    GetActionResult: "build.bazel.remote.execution.v2.ActionCache" "GetActionResult" Unary Ac;
    UpdateActionResult: "build.bazel.remote.execution.v2.ActionCache" "UpdateActionResult" Unary Ac;
    FindMissingBlobs: "build.bazel.remote.execution.v2.ContentAddressableStorage" "FindMissingBlobs" Unary Cas;
    BatchUpdateBlobs: "build.bazel.remote.execution.v2.ContentAddressableStorage" "BatchUpdateBlobs" Unary Cas;
    BatchReadBlobs: "build.bazel.remote.execution.v2.ContentAddressableStorage" "BatchReadBlobs" Unary Cas;
    GetTree: "build.bazel.remote.execution.v2.ContentAddressableStorage" "GetTree" ServerStream Cas;
    SplitBlob: "build.bazel.remote.execution.v2.ContentAddressableStorage" "SplitBlob" Unary Cas;
    GetChunkMapping: "build.bazel.remote.execution.v2.ContentAddressableStorage" "GetChunkMapping" ServerStream Cas;
    SpliceBlob: "build.bazel.remote.execution.v2.ContentAddressableStorage" "SpliceBlob" Unary Cas;
    RegisterChunkMapping: "build.bazel.remote.execution.v2.ContentAddressableStorage" "RegisterChunkMapping" ClientStream Cas;
    Read: "google.bytestream.ByteStream" "Read" ServerStream Cas;
    Write: "google.bytestream.ByteStream" "Write" ClientStream Cas;
    QueryWriteStatus: "google.bytestream.ByteStream" "QueryWriteStatus" Unary Cas;
    HealthCheck: "grpc.health.v1.Health" "Check" Unary Other;
    HealthWatch: "grpc.health.v1.Health" "Watch" ServerStream Other;
    Reflection: "grpc.reflection.v1.ServerReflection" "ServerReflectionInfo" Bidi Other;
    ReflectionAlpha: "grpc.reflection.v1alpha.ServerReflection" "ServerReflectionInfo" Bidi Other;
}

impl Method {
    /// Whether its requests last as long as a client likes, and are about the server itself.
    pub fn watches(self) -> bool {
        matches!(self, Self::HealthCheck | Self::HealthWatch | Self::Reflection | Self::ReflectionAlpha)
    }

    /// What a call came to.
    pub fn outcome(self, code: Code) -> Outcome {
        let reads = matches!(self, Self::GetActionResult | Self::Read | Self::GetTree | Self::SplitBlob | Self::GetChunkMapping);
        match code {
            Code::Ok if reads => Outcome::Hit,
            Code::Ok => Outcome::Ok,
            Code::NotFound if reads => Outcome::Miss,
            Code::Canceled => Outcome::Cancelled,
            Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Outcome::ServerError,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Outcome::ClientError,
        }
    }
}

/// What a request over HTTP came to.
pub fn http_outcome(verb: Verb, handler: Handler, status: u16) -> Outcome {
    let cache = handler.kind() != Kind::Other;
    let reads = cache && matches!(verb, Verb::Get | Verb::Head | Verb::Propfind);
    match status {
        STATUS_CANCELLED => Outcome::Cancelled,
        404 if reads => Outcome::Miss,
        200..=399 if reads => Outcome::Hit,
        200..=399 => Outcome::Ok,
        // Deleting what is not there is no mistake.
        404 if cache => Outcome::Ok,
        400..=499 => Outcome::ClientError,
        _ => Outcome::ServerError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_order<L: Label + PartialEq + std::fmt::Debug>() {
        let mut texts = std::collections::HashSet::new();
        for (place, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.place(), place, "{label:?}");
            assert!(texts.insert(label.text()), "{label:?}");
        }
    }

    #[test]
    fn every_value_has_a_place_and_a_text_of_its_own() {
        in_order::<Protocol>();
        in_order::<Kind>();
        in_order::<Outcome>();
        in_order::<BlobOutcome>();
        in_order::<AuthOutcome>();
        in_order::<Reload>();
        in_order::<Verb>();
        in_order::<Handler>();
        in_order::<Status>();
        in_order::<Code>();
        for (place, method) in Method::ALL.iter().enumerate() {
            assert_eq!(method.place(), place, "{method:?}");
        }
    }

    #[test]
    fn what_is_unknown_is_one_value() {
        assert_eq!(Method::of("/build.bazel.remote.execution.v2.Execution/Execute"), Method::Other);
        assert_eq!(Method::of("/google.bytestream.ByteStream/Read"), Method::Read);
        assert_eq!(Verb::of(&http::Method::from_bytes(b"BREW").unwrap()), Verb::Other);
        assert_eq!(Status::of(418).text(), "other");
        assert_eq!(Status::of(507).text(), "507");
        for (status, code) in
            [("0", Code::Ok), ("16", Code::Unauthenticated), ("17", Code::Unknown), ("-1", Code::Unknown), ("", Code::Unknown)]
        {
            assert_eq!(Code::of(status.as_bytes()), code, "{status:?}");
        }
    }

    /// A method that is added to the interface needs a label, or it would count as unknown.
    #[test]
    fn every_method_that_is_offered_has_a_label() {
        let offered = include_str!("../front/reapi.rs").lines().filter_map(|line| line.trim().strip_prefix("\"/")?.strip_suffix("\","));
        let paths: Vec<_> = offered.map(|path| format!("/{path}")).collect();
        assert!(paths.len() >= 14, "{paths:?}");
        for path in paths {
            assert_ne!(Method::of(&path), Method::Other, "{path}");
        }
    }

    #[test]
    fn the_codes_are_those_of_grpc() {
        for (number, code) in (0..).zip(Code::ALL) {
            assert_eq!(Code::of(number.to_string().as_bytes()), *code);
            let named = format!("{:?}", tonic::Code::from_i32(number));
            let expected = match *code {
                Code::Ok => "Ok".to_owned(),
                Code::Canceled => "Cancelled".to_owned(),
                code => code.text().to_owned(),
            };
            assert_eq!(named, expected);
        }
    }

    #[test]
    fn outcomes() {
        for (method, code, outcome) in [
            (Method::GetActionResult, Code::Ok, Outcome::Hit),
            (Method::GetActionResult, Code::NotFound, Outcome::Miss),
            (Method::Write, Code::Ok, Outcome::Ok),
            (Method::Write, Code::ResourceExhausted, Outcome::ServerError),
            (Method::Read, Code::Canceled, Outcome::Cancelled),
            (Method::Other, Code::Unimplemented, Outcome::ClientError),
        ] {
            assert_eq!(method.outcome(code), outcome, "{method:?} {code:?}");
        }
        for (verb, handler, status, outcome) in [
            (Verb::Get, Handler::Cas, 200, Outcome::Hit),
            (Verb::Get, Handler::Cas, 304, Outcome::Hit),
            (Verb::Head, Handler::Ac, 404, Outcome::Miss),
            (Verb::Put, Handler::Cas, 200, Outcome::Ok),
            (Verb::Delete, Handler::Kv, 404, Outcome::Ok),
            (Verb::Get, Handler::Metrics, 200, Outcome::Ok),
            (Verb::Put, Handler::Cas, 400, Outcome::ClientError),
            (Verb::Put, Handler::Cas, 507, Outcome::ServerError),
            (Verb::Get, Handler::Cas, STATUS_CANCELLED, Outcome::Cancelled),
        ] {
            assert_eq!(http_outcome(verb, handler, status), outcome, "{verb:?} {handler:?} {status}");
        }
    }
}
