//! What must hold for any bytes at all; the fuzz target runs this same function.

use qbm::descriptor::Descriptor;

/// Parses `bytes`; a descriptor that comes out must survive being saved and read again, unchanged and to the byte.
pub fn survives_saving(bytes: &[u8]) {
    let Ok(descriptor) = Descriptor::parse(bytes) else {
        return;
    };
    let saved = descriptor.to_json();
    let again = match Descriptor::parse(&saved) {
        Ok(again) => again,
        Err(error) => panic!("what was saved is refused: {error}"),
    };
    assert_eq!(again, descriptor);
    assert_eq!(again.to_json(), saved);
}
