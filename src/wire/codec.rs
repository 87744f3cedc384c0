//! How messages become bytes: as prost does it, in buffers as small as what is in them.
//!
//! tonic gives each direction of each call 8 KiB before there is anything to put in. A daemon is one call that lasts for days
//! and says a hundred bytes now and then: with ten thousand of them that was a third of the server's memory.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{self, BufferSettings, EncodeBuf},
};
use tonic_prost::{ProstCodec, ProstDecoder};

/// Bytes of a buffer in which there has been nothing yet. It grows to what one message needs.
const EMPTY: usize = 512;
/// Bytes of messages that wait at once before they go out: tonic's own default.
const ENOUGH: usize = 32 * 1024;

/// The codec of all our services.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> codec::Codec for Codec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Encoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Encoder<T> {
        Encoder(PhantomData)
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}

/// Writes messages.
#[derive(Debug)]
pub struct Encoder<T>(PhantomData<T>);

impl<T: Message> codec::Encoder for Encoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // All at once: left to itself the buffer doubles until it fits.
        buffer.reserve(message.encoded_len());
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(EMPTY, ENOUGH)
}
