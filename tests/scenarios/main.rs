//! Stories of one partition each, told with shipped stores and engines in a world under a virtual clock.

mod place;
mod claims;
mod fences;
mod moves;
mod partition;
mod divergence;
mod reconnect;
mod pressure;
mod restore;
mod anew;
mod desk;
mod domain;
mod descent;
mod conflicts;
mod autonomy;
mod twins;
mod decisions;
