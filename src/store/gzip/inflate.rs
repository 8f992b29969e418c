//! Raw inflate over a sliding buffer: constant memory, strict about distances.
//!
//! The decoder writes behind 32 KiB of history into one buffer; when that is full the history is moved to
//! its front. A distance that reaches before the first byte is therefore refused, as zlib refuses it.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_IGNORE_ADLER32, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
    TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use std::ops::Range;

const HISTORY: usize = 32 * 1024;
const BUFFER: usize = 5 * HISTORY;

/// What one step came to.
pub(super) enum Step {
    /// Go on: with more input if all of it was taken.
    More,
    /// A block ended; `aligned` if at a byte boundary, so that the stream could be cut here.
    Block { aligned: bool },
    /// The final block ended.
    Done,
    /// Not deflate data.
    Bad,
}

/// The decoder with its buffer of about 170 KiB.
pub(super) struct Inflater {
    decoder: Box<DecompressorOxide>,
    buffer: Vec<u8>,
    position: usize,
    blocks: bool,
}

impl Inflater {
    /// A decoder at the start of a stream; with `blocks` it stops at the end of each block.
    pub(super) fn new(blocks: bool) -> Inflater {
        Inflater {
            decoder: Box::default(),
            buffer: Vec::new(),
            position: 0,
            blocks,
        }
    }

    /// Ready for another stream.
    pub(super) fn restart(&mut self) {
        *self.decoder = DecompressorOxide::new();
        self.position = 0;
    }

    /// Decodes some of `input`: how it went, how many bytes were taken, and where the plain bytes are
    /// (see [`Inflater::plain`]; good until the next step).
    pub(super) fn step(&mut self, input: &[u8]) -> (Step, usize, Range<usize>) {
        if self.buffer.is_empty() {
            // Fresh pages cost nothing before they are used.
            self.buffer = vec![0; BUFFER];
        }
        if self.position == BUFFER {
            self.buffer.copy_within(BUFFER - HISTORY.., 0);
            self.position = HISTORY;
        }
        let mut flags = TINFL_FLAG_HAS_MORE_INPUT
            | TINFL_FLAG_IGNORE_ADLER32
            | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        if self.blocks {
            flags |= TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        }
        let (status, taken, made) = decompress(
            &mut self.decoder,
            input,
            &mut self.buffer,
            self.position,
            flags,
        );
        let plain = self.position..self.position + made;
        self.position = plain.end;
        let step = match status {
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => Step::More,
            TINFLStatus::BlockBoundary => Step::Block {
                aligned: self
                    .decoder
                    .block_boundary_state()
                    .is_some_and(|s| s.num_bits == 0),
            },
            TINFLStatus::Done => Step::Done,
            _ => Step::Bad,
        };
        (step, taken, plain)
    }

    /// The plain bytes of the last step.
    pub(super) fn plain(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }
}
