impl :: bincode :: Encode for Member
{
    fn encode < __E : :: bincode :: enc :: Encoder >
    (& self, encoder : & mut __E) ->core :: result :: Result < (), :: bincode
    :: error :: EncodeError >
    {
        :: bincode :: Encode :: encode(&self.name, encoder) ?; :: bincode ::
        Encode :: encode(&self.weight, encoder) ?; :: bincode :: Encode ::
        encode(&self.ballot, encoder) ?; :: bincode :: Encode ::
        encode(&self.ballot_bytes, encoder) ?; core :: result :: Result ::
        Ok(())
    }
}