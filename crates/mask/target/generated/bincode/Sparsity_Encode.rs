impl :: bincode :: Encode for Sparsity
{
    fn encode < __E : :: bincode :: enc :: Encoder >
    (& self, encoder : & mut __E) ->core :: result :: Result < (), :: bincode
    :: error :: EncodeError >
    {
        :: bincode :: Encode :: encode(&self.numerator, encoder) ?; :: bincode
        :: Encode :: encode(&self.denominator, encoder) ?; core :: result ::
        Result :: Ok(())
    }
}